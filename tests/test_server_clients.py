"""pyskip serve through the clients that people use: openai's, langchain's, llm's by its own OpenAI models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from conftest import make_random
from serving import ALTERNATE, TOOL_TEMPLATE, Running, running

import pyskip

pytestmark = pytest.mark.loopback

LONGER = ("--", "--override-kv", "llama.context_length=int:8192")  # the tiny model says 512
MESSAGES: list[Any] = [{"role": "user", "content": "w1 w2 w3"}]
SCHEMA: Any = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}, "ok": {"enum": [True]}},
    "required": ["name", "age", "ok"],
}
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks up.",
        "parameters": {**SCHEMA, "additionalProperties": False},
    },
}


@pytest.fixture(scope="module")
def server(tiny: Path) -> Iterator[Running]:
    with running(str(tiny), "-c", "2048", *LONGER) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.DefaultHttpxClient(verify=False) as http:
        yield openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", http_client=http, max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def embedder(tiny: Path) -> Iterator[openai.OpenAI]:
    args = (str(tiny), "-c", "8192", "--embedding", *LONGER)
    with running(*args) as server, openai.DefaultHttpxClient(verify=False) as http:
        yield openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", http_client=http, max_retries=0, timeout=60)


def test_chat(client: openai.OpenAI) -> None:
    kwargs: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 9, "temperature": 0}
    whole = client.chat.completions.create(**kwargs, extra_body={"skip": ALTERNATE, "skip_trace": True})
    assert whole.usage is not None
    assert whole.usage.model_extra is not None
    assert whole.usage.model_extra["skip_rate"] == pytest.approx(1 / 3)
    stream = client.chat.completions.create(
        **kwargs, stream=True, stream_options={"include_usage": True}, extra_body={"skip": ALTERNATE}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 9


def test_completion_and_models(client: openai.OpenAI) -> None:
    done = client.completions.create(model="tiny", prompt="w1", max_tokens=4, temperature=0, extra_body={"skip": "off"})
    parts = client.completions.create(model="tiny", prompt="w1", max_tokens=4, temperature=0, stream=True)
    assert "".join(part.choices[0].text for part in parts) == done.choices[0].text
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="tiny", messages=MESSAGES, extra_body={"skip": "bogus"})
    assert (bad.value.param, bad.value.code) == ("skip", "invalid_skip")


def test_json_schema(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=400,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}},
        extra_body={"skip": ALTERNATE, "logit_bias": {}},
    )
    assert answer.choices[0].finish_reason == "stop"
    person = json.loads(answer.choices[0].message.content or "")
    assert isinstance(person["name"], str)
    assert isinstance(person["age"], int)
    assert person["ok"] is True


def test_tools(tiny: Path, client: openai.OpenAI) -> None:
    """With a template that puts them to the model; what it says before a call is its own, so only what it is held to is
    looked at."""
    kwargs: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "tools": [TOOL], "max_tokens": 8}
    two = [TOOL, {**TOOL, "function": {**TOOL["function"], "name": "other"}}]
    with running(str(tiny), "-c", "4096", "--chat-template", TOOL_TEMPLATE, *LONGER) as server:
        for tools, choice, names in (
            ([TOOL], {"type": "function", "function": {"name": "look_up"}}, {"look_up"}),
            (two, {"type": "function", "function": {"name": "other"}}, {"other"}),
            (two, "required", {"look_up", "other"}),
        ):
            body = {**kwargs, "tools": tools, "tool_choice": choice, "verbose": True}
            answer = server.post("/v1/chat/completions", body).json()
            grammar = answer["__verbose"]["generation_settings"]["grammar"]
            assert {name for name in ("look_up", "other") if f'"{name}"' in grammar} == names
            assert "grammar_lazy" not in answer or not answer["grammar_lazy"]
        call = {"id": "1", "type": "function", "function": {"name": "look_up", "arguments": '{"name": "x"}'}}
        messages = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [call]}]
        messages.append({"role": "tool", "tool_call_id": "1", "content": "w9"})
        assert server.post("/v1/chat/completions", {**kwargs, "messages": messages}).status_code == 200
        wrong = {**kwargs, "tool_choice": {"type": "function", "function": {"name": "nothing"}}}
        assert server.post("/v1/chat/completions", wrong).json()["error"]["param"] == "tool_choice"
        assert server.post("/v1/chat/completions", {**kwargs, "tool_choice": "sometimes"}).status_code == 400
    with pytest.raises(openai.BadRequestError, match="knows no tools"):
        client.chat.completions.create(**kwargs, tool_choice="required")


def test_embeddings(embedder: openai.OpenAI, tiny: Path) -> None:
    texts = ["w1 w2 w3", "w4"]
    answer = embedder.embeddings.create(model="tiny", input=texts)  # in base64, which is what this client asks for
    plain = embedder.embeddings.create(model="tiny", input=texts[0], encoding_format="float")
    llm = pyskip.Llama(tiny, n_ctx=512, n_threads=1, n_threads_batch=1, embedding=True, verbose=False)
    expected = llm.create_embedding(texts)["data"]
    llm.close()
    for item, want in zip(answer.data, expected, strict=True):
        mean = np.mean(want["embedding"], axis=0)
        assert item.embedding == pytest.approx(mean / np.linalg.norm(mean), abs=2e-3)
        assert np.linalg.norm(item.embedding) == pytest.approx(1, abs=1e-4)
    assert plain.data[0].embedding == pytest.approx(answer.data[0].embedding, abs=1e-5)
    long = embedder.embeddings.create(model="tiny", input="w1 " * 2000)
    assert long.usage.prompt_tokens >= 4000
    assert np.linalg.norm(long.data[0].embedding) == pytest.approx(1, abs=1e-4)
    before = embedder.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=5, temperature=0)
    embedder.embeddings.create(model="tiny", input=texts)
    after = embedder.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=5, temperature=0)
    assert before.choices == after.choices
    nothing: Any = ("", [], ["w1", ""])
    for text in nothing:
        with pytest.raises(openai.BadRequestError):
            embedder.embeddings.create(model="tiny", input=text)


def test_logprobs_and_choices(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=24, n=2, logprobs=True, top_logprobs=3, temperature=1
    )
    assert len(answer.choices) == 2
    told = [choice.logprobs.content for choice in answer.choices if choice.logprobs is not None]
    assert told  # tokens that are part of a character have none
    assert all(len(token.top_logprobs) == 3 for tokens in told for token in tokens or ())


def test_fields_that_are_null(server: Running) -> None:
    """What a client sends that writes down every field that it knows."""
    fields = (
        "max_tokens", "max_completion_tokens", "temperature", "top_p", "n", "stop", "seed", "logprobs", "top_logprobs",
        "logit_bias", "response_format", "tools", "tool_choice", "stream", "stream_options", "user",
        "frequency_penalty", "presence_penalty", "parallel_tool_calls", "skip", "skip_trace", "skip_prompt",
        "reasoning_effort", "metadata",
    )  # fmt: skip
    for field in fields:
        answer = server.post("/v1/chat/completions", {"messages": MESSAGES, "n_predict": 2, field: None})
        assert answer.status_code == 200, f"{field}: {answer.text}"


def test_a_reply_goes_back_as_it_came(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=4)
    messages = [*MESSAGES, first.choices[0].message.model_dump(), {"role": "user", "content": "w4"}]
    assert client.chat.completions.create(model="tiny", messages=messages, max_tokens=4).choices


def test_tools_of_odd_shapes(client: openai.OpenAI) -> None:
    """Without parameters, with null for them, with a property named as a keyword of schemas."""
    shapes: Any = (
        {"name": "f"},
        {"name": "f", "parameters": None, "description": None},
        {"name": "f", "parameters": {"type": "object", "properties": {"pattern": {"type": "string"}}}},
    )
    for shape in shapes:
        tools: Any = [{"type": "function", "function": shape}]
        for choice in ("auto", "none"):
            answer = client.chat.completions.create(
                model="tiny", messages=MESSAGES, tools=tools, tool_choice=choice, max_tokens=4
            )
            assert answer.choices


def test_langchain(server: Running) -> None:
    langchain_openai = pytest.importorskip("langchain_openai")
    with openai.DefaultHttpxClient(verify=False) as http:
        chat = langchain_openai.ChatOpenAI(
            model="tiny", base_url=f"{server.url}/v1", api_key="none", temperature=0, max_tokens=400, http_client=http,
            extra_body={"skip": ALTERNATE},
        )  # fmt: skip
        short = chat.bind(max_tokens=6)
        whole = short.invoke("w1 w2")
        assert "".join(part.content for part in short.stream("w1 w2")) == whole.content
        person = chat.with_structured_output({"title": "person", **SCHEMA}, method="json_schema").invoke("w1")
        assert person["ok"] is True


def test_llm_by_its_own_openai_models(server: Running, tmp_path: Path) -> None:
    """extra-openai-models.yaml, as docs/server.md has it."""
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: served\n  model_name: tiny\n  api_base: {server.url}/v1\n"
    )
    env = {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none", "LLM_LOAD_PLUGINS": ""}
    command = [
        sys.executable,
        "-m",
        "llm",
        "-m",
        "served",
        "-o",
        "max_tokens",
        "5",
        "-o",
        "temperature",
        "0",
        "w1 w2 w3",
    ]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    body = {"messages": MESSAGES, "max_tokens": 5, "temperature": 0}
    answer = server.post("/v1/chat/completions", body).json()
    assert done.stdout.strip() == answer["choices"][0]["message"]["content"].strip()


def test_a_model_without_a_template_speaks_chatml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gguf.GGUFWriter.add_chat_template", lambda *_: None)
    make_random.make(tmp_path / "bare.gguf", make_random.SHAPES["tiny"])
    with running(str(tmp_path / "bare.gguf")) as server:
        prompt = server.post("/apply-template", {"messages": MESSAGES}).json()["prompt"]
    assert prompt.startswith("<|im_start|>user\nw1 w2 w3<|im_end|>")

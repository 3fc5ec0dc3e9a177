"""What several APIs say in their own words: held as chat completions hold it, or refused by the name of the field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from parrot import make_parrot
from serving import TOOL_TEMPLATE, Running, running

pytestmark = pytest.mark.loopback

LONGER = ("--", "--override-kv", "llama.context_length=int:8192")  # the tiny model says 512
CHAT, RESPONSES, MESSAGES, COMPLETIONS = "/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/completions"
SAID: list[Any] = [{"role": "user", "content": "w1"}]
SCHEMA = {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"], "additionalProperties": False}
CALL = '<tool_call>\n{"name": "look_up", "arguments": {}}\n</tool_call>'


@pytest.fixture(scope="module")
def server(tiny: Path) -> Iterator[Running]:
    with running(str(tiny), "-c", "512", "--embedding", *LONGER) as server:
        yield server


@pytest.fixture(scope="module")
def calling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A model that calls look_up, whatever it is asked."""
    path = make_parrot(tmp_path_factory.mktemp("calling") / "calling.gguf", [CALL])
    with running(str(path), "-c", "2048", "--chat-template", TOOL_TEMPLATE) as server:
        yield server


def refused(server: Running, path: str, param: str | None, words: str, **body: Any) -> None:
    answer = server.post(path, body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert words in error["message"]
    assert "\n" not in error["message"]
    assert error["param"] == param


# Schemas


def test_a_schema_of_responses(server: Running) -> None:
    form = {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}
    body = {"input": "w1", "max_output_tokens": 99, "temperature": 1, "text": {"format": form}}
    answer = server.post(RESPONSES, body).json()
    assert json.loads(answer["output"][-1]["content"][0]["text"]) == {"n": 7}
    streamed = server.post(RESPONSES, {**body, "stream": True}).text
    (done,) = [line for line in streamed.splitlines() if '"type":"response.output_text.done"' in line]
    assert json.loads(json.loads(done.removeprefix("data: "))["text"]) == {"n": 7}
    answer = server.post(RESPONSES, {**body, "text": {"format": {"type": "json_object"}}}).json()
    assert answer["output"][-1]["content"][0]["text"].startswith("{")
    assert server.post(RESPONSES, {**body, "text": {"format": {"type": "text"}}}).status_code == 200


@pytest.mark.parametrize("field", ["output_config", "output_format"])
def test_a_schema_of_messages(server: Running, field: str) -> None:
    form: Any = {"type": "json_schema", "schema": SCHEMA}
    body = {
        "messages": SAID,
        "max_tokens": 99,
        "temperature": 1,
        field: form if "format" in field else {"format": form},
    }
    (block,) = server.post(MESSAGES, body).json()["content"]
    assert json.loads(block["text"]) == {"n": 7}
    form["schema"] = {"type": "integer", "multipleOf": 3}
    if field == "output_config":
        refused(server, MESSAGES, "output_config", "multipleOf", **body)


def test_a_schema_that_refers_to_itself(server: Running) -> None:
    """As a whole, by "#"."""
    schema = {
        "type": "object",
        "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}},
        "required": ["next"],
        "additionalProperties": False,
    }
    found = set()
    for seed in range(8):
        form = {"type": "json_schema", "json_schema": {"schema": schema, "strict": True}}
        body = {"messages": SAID, "max_tokens": 200, "temperature": 1.5, "seed": seed, "response_format": form}
        choice = server.post(CHAT, body).json()["choices"][0]
        if choice["finish_reason"] == "stop":
            node, depth = json.loads(choice["message"]["content"]), 0
            while node["next"] is not None:
                assert set(node) == {"next"}
                node, depth = node["next"], depth + 1
            found.add(depth)
    assert found


def test_forms_of_response_format(server: Running) -> None:
    body = {"messages": SAID, "max_tokens": 99, "temperature": 1}
    for form in ({"type": "json_schema", "schema": SCHEMA}, {"type": "json_schema", "json_schema": {"schema": SCHEMA}}):
        answer = server.post(CHAT, {**body, "response_format": form}).json()
        assert json.loads(answer["choices"][0]["message"]["content"]) == {"n": 7}
    wrong_forms: list[Any] = ["json", 5, [], {"type": "json_schema"}]
    for wrong in (*wrong_forms, {"type": "json_schema", "json_schema": {"schema": None}}):
        refused(server, CHAT, "response_format", "expected", **body, response_format=wrong)
    no_schemas: list[Any] = [5, [], "x"]
    for schema in no_schemas:
        refused(server, CHAT, "response_format", "expected an object", **body,
                response_format={"type": "json_schema", "json_schema": {"schema": schema}})  # fmt: skip
    refused(server, CHAT, None, "the schema has no grammar (JSON schema error at #", **body,
            response_format={"type": "json_schema", "json_schema": {"schema": {"type": []}}})  # fmt: skip


# Tools


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
def test_a_tool_that_is_named(calling: Running, path: str) -> None:
    """It alone can be called, and another one is not."""
    names = ("look_up", "other")
    tools: Any = [{"name": name, "parameters": {"type": "object"}} for name in names]
    body: dict[str, Any] = {"model": "calling", "max_tokens": 60, "max_output_tokens": 60, "temperature": 0}
    if path == CHAT:
        body |= {"messages": SAID, "tools": [{"type": "function", "function": tool} for tool in tools]}
    elif path == RESPONSES:
        body |= {"input": "w1", "tools": [{"type": "function", **tool} for tool in tools]}
    else:
        body |= {"messages": SAID, "tools": [{"name": name, "input_schema": {"type": "object"}} for name in names]}

    def choice(name: str) -> Any:
        inner = {"function": {"name": name}} if path == CHAT else {"name": name}
        return {"type": "tool" if path == MESSAGES else "function", **inner}

    assert '"look_up"' in calling.post(path, {**body, "tool_choice": choice("look_up")}).text
    assert '"look_up"' not in calling.post(path, {**body, "tool_choice": choice("other")}).text
    refused(calling, path, "tool_choice", "names 'third'", **body, tool_choice=choice("third"))


def test_no_tool_of_messages(calling: Running) -> None:
    tools = [{"name": "look_up", "input_schema": {"type": "object"}}]
    body = {"messages": SAID, "max_tokens": 60, "tools": tools}
    assert calling.post(MESSAGES, body).json()["stop_reason"] == "tool_use"
    answer = calling.post(MESSAGES, {**body, "tool_choice": {"type": "none"}}).json()
    assert [block["type"] for block in answer["content"]] == ["text"]


@pytest.mark.parametrize("arguments", ["", None, "{}"])
def test_calls_without_arguments_go_back(calling: Running, arguments: str | None) -> None:
    function = {"name": "look_up", "arguments": arguments}
    call = {"id": "1", "type": "function", "index": None, "function": function}
    messages = [*SAID, {"role": "assistant", "content": None, "tool_calls": [call]}]
    messages.append({"role": "tool", "tool_call_id": "1", "content": "w2"})
    prompt = calling.post("/apply-template", {"messages": messages}).json()["prompt"]
    assert CALL in prompt


# Fields


def test_items_that_a_client_keeps(server: Running) -> None:
    told = {"role": "assistant", "content": "w7"}
    hidden = {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "x"}
    parts = {"role": "assistant", "content": [{"type": "output_text", "text": "w7", "annotations": []}]}
    n_tokens = set()
    for items in ([told], [hidden, told], [parts], [{**parts, "type": "message", "status": "completed"}]):
        answer = server.post(RESPONSES, {"input": [*SAID, *items, {"role": "user", "content": "w2"}]})
        assert answer.status_code == 200, answer.text
        n_tokens.add(answer.json()["usage"]["input_tokens"])
    assert len(n_tokens) == 1


def test_no_messages(server: Running) -> None:
    wrong: list[Any] = [[], 5, {}, "w1"]
    for path in (CHAT, MESSAGES, "/v1/messages/count_tokens", "/apply-template"):
        for messages in wrong:
            refused(server, path, "messages", "expected at least one", messages=messages, max_tokens=2)


def test_empty_stops_end_nothing(server: Running) -> None:
    body = {"messages": SAID, "max_tokens": 6, "temperature": 0, "ignore_eos": True}
    expected = server.post(CHAT, body).json()["choices"]
    for stop in ("", [""], ["", None], []):
        assert server.post(CHAT, {**body, "stop": stop}).json()["choices"] == expected
    answer = server.post(MESSAGES, {**body, "stop_sequences": [""]}).json()
    assert answer["stop_reason"] == "max_tokens"


def test_what_completions_do_not_have(server: Running) -> None:
    body = {"prompt": "w1", "max_tokens": 2}
    for field, value in (("echo", True), ("suffix", "w2"), ("best_of", 3)):
        refused(server, COMPLETIONS, field, field, **body, **{field: value})
    for same in ({"echo": False}, {"suffix": ""}, {"suffix": None}, {"best_of": 1}, {"best_of": 2, "n": 2}):
        assert server.post(COMPLETIONS, {**body, **same}).status_code == 200


def test_logprobs_of_completions(tmp_path: Path) -> None:
    """As OpenAI has them: upstream writes those of chat completions."""
    path = make_parrot(tmp_path / "polite.gguf", ["Good", " day", "."])
    kwargs: Any = {"model": "polite", "prompt": "\n", "max_tokens": 9, "temperature": 0, "logprobs": 3}
    with running(str(path), "-c", "256") as server, openai.DefaultHttpxClient(verify=False) as http:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", http_client=http, max_retries=0)
        choice = client.completions.create(**kwargs).choices[0]
        parts = [part.choices[0] for part in client.completions.create(stream=True, **kwargs)]
    found = choice.logprobs
    assert found is not None
    assert (choice.text, found.tokens) == ("Good day.", ["Good", " day", ".", ""])  # the last one ends the text
    assert found.text_offset == [0, 4, 8, 9]
    for token, value, top in zip(found.tokens, found.token_logprobs or (), found.top_logprobs or (), strict=True):
        assert max(top.values()) == top[token] == value
        assert value > -0.1
    assert [token for part in parts if part.logprobs for token in part.logprobs.tokens or ()] == found.tokens


def test_embeddings(server: Running) -> None:
    refused(server, "/v1/embeddings", "dimensions", "expected 64", input="w1", dimensions=8)
    assert server.post("/v1/embeddings", {"input": "w1", "dimensions": 64}).status_code == 200
    answer = server.post("/v1/embeddings", {"input": "w1 " * 2000})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")

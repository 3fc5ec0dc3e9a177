"""pyskip serve: OpenAI's endpoints and errors, and a policy for each request that leaves nothing to the next."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import ALTERNATE, Running, open_served, running

import pyskip
from pyskip.runtime.generation import Generation, chat_tokens
from pyskip.server import turns
from pyskip.server.completion import create_completion

pytestmark = pytest.mark.loopback

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "w1 w2 w3"}]
LONG = " ".join(f"w{i % 30 + 1}" for i in range(150))  # some blocks of prompt
SKIPS = ("off", "static:1,3", ALTERNATE, 0.4)


@pytest.fixture(scope="module")
def models(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models, the first with a profile."""
    from conftest import make_profile, make_random

    folder = tmp_path_factory.mktemp("served")
    one, two = folder / "one.gguf", folder / "two.gguf"
    one.write_bytes(tiny.read_bytes())
    make_profile.make_profile(one, folder / "one.skip.gguf")
    make_random.make(two, make_random.SHAPES["tiny"], seed=7)
    return one, two


@pytest.fixture(scope="module")
def server(models: tuple[Path, Path]) -> Iterator[Running]:
    one, two = (open_served(path, n_ctx=1024) for path in models)
    with running({"one": one, "two": two}) as server:
        yield server


def chat(server: Running, **more: Any) -> dict[str, Any]:
    body = {"messages": MESSAGES, "max_tokens": 12, "temperature": 0, **more}
    answer = server.post(CHAT, body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def said(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def stream(server: Running, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a streamed answer."""
    answer = server.post(path, {"stream": True, **body})
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.text.split("\n\n") if line]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_skip_by_request(server: Running, models: tuple[Path, Path]) -> None:
    """What the library says and skips, a request is told."""
    llm = pyskip.Llama(models[0], n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False)
    for skip in SKIPS:
        llm.reset()
        llm.skip = skip
        generation = Generation(llm, chat_tokens(llm, MESSAGES), max_tokens=12, temp=0, seed=None)
        expected = "".join(generation).replace("\ufffd", "")  # a server leaves out what is no character
        first, second = chat(server, skip=skip), chat(server, skip=skip)
        assert said(first) == said(second) == expected
        usage = generation.answer()
        for answer in (first, second):
            assert answer["usage"]["skip_rate"] == pytest.approx(usage.skip.rate)
            assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (usage.n_prompt, 12)
        assert (usage.skip.rate > 0) == (skip != "off")
    llm.close()


def test_a_request_without_skip_gets_the_servers_own(models: tuple[Path, Path]) -> None:
    with running({"m": open_served(models[0], skip="static:2")}) as server:
        own = chat(server)
        assert own["usage"]["skip_rate"] == pytest.approx(1 / 6)
        assert chat(server, skip="off")["usage"]["skip_rate"] == 0
        assert server.post(CHAT, {"messages": MESSAGES, "skip": "static:77"}).status_code == 400
        assert said(chat(server)) == said(own)
        assert chat(server)["usage"]["skip_rate"] == pytest.approx(1 / 6)
        assert server.get("/pyskip/models").json()["data"][0]["skip"] == "static:2"


def test_answers_do_not_hang_on_the_past(server: Running, models: tuple[Path, Path]) -> None:
    """Each as from a server that was just started, whatever came before: prefixes of prompts that were answered under
    other policies, and whole conversations."""
    first = {"role": "user", "content": LONG}
    bodies: list[dict[str, Any]] = []
    for skip in SKIPS:
        for rest in ([], [{"role": "assistant", "content": "w3"}, {"role": "user", "content": "w4 w5"}]):
            bodies.append({"messages": [first, *rest], "skip": skip, "max_tokens": 24})
    alone = []
    for body in bodies:
        with running({"one": open_served(models[0], n_ctx=1024)}) as fresh:
            alone.append(said(chat(fresh, **body)))
    n_cached = 0
    for i in (0, 1, 2, 3, 1, 0, 4, 1, 5, 6, 7, 3, 2, 7, 0, 6, 6):
        answer = chat(server, **bodies[i])
        assert said(answer) == alone[i], bodies[i]["skip"]
        n_cached += answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert n_cached > 1000  # and that is not because nothing was used again
    follow_up = [*bodies[0]["messages"], {"role": "assistant", "content": alone[0]}, {"role": "user", "content": "w9"}]
    chat(server, **bodies[0])
    going_on = chat(server, messages=follow_up, skip="off")
    with running({"one": open_served(models[0], n_ctx=1024)}) as fresh:
        assert said(chat(fresh, messages=follow_up, skip="off")) == said(going_on)


def test_stream(server: Running) -> None:
    body = {"messages": MESSAGES, "max_tokens": 9, "temperature": 0, "skip": ALTERNATE}
    whole = chat(server, **body)
    chunks = stream(server, CHAT, {**body, "stream_options": {"include_usage": True}, "skip_trace": True})
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["skip_rate"] == pytest.approx(1 / 3)
    assert chunks[-1]["usage"]["tokens_per_second"] > 0
    assert chunks[-1]["usage"]["completion_tokens"] == 9
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1]) == said(whole)
    traced = [piece for chunk in chunks for piece in chunk.get("skip_trace", ())]
    assert "".join(piece["text"] for piece in traced) == said(whole)
    assert traced[0]["skipped"] == []  # the prompt's decode, which is dense
    assert all(piece["skipped"] == [2, 4] for piece in traced[1:])
    assert not any("usage" in chunk for chunk in stream(server, CHAT, body))


def test_trace_of_a_whole_answer(server: Running) -> None:
    answer = chat(server, skip=ALTERNATE, skip_trace=True)
    assert "".join(piece["text"] for piece in answer["skip_trace"]) == said(answer)
    assert len(answer["skip_trace"]) <= answer["usage"]["completion_tokens"]
    stop = next(piece["text"] for piece in answer["skip_trace"] if len(piece["text"]) > 2)
    cut = chat(server, skip=ALTERNATE, skip_trace=True, stop=[stop[1:]])
    assert said(cut) == said(answer)[: said(answer).index(stop[1:])]
    assert "".join(piece["text"] for piece in cut["skip_trace"]) == said(cut)
    assert cut["choices"][0]["finish_reason"] == "stop"
    assert "skip_trace" not in chat(server)


def test_completions(server: Running) -> None:
    body = {"prompt": "w1 w2", "max_tokens": 6, "temperature": 0, "skip": "static:1"}
    whole = server.post("/v1/completions", body).json()
    chunks = stream(server, "/v1/completions", body)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]
    assert whole["usage"]["skip_rate"] == pytest.approx(1 / 6)
    assert server.post("/v1/completions", {**body, "prompt": ["w1 w2"]}).json()["choices"] == whole["choices"]


def test_models(server: Running) -> None:
    assert [model["id"] for model in server.get("/v1/models").json()["data"]] == ["one", "two"]
    assert server.get("/v1/models/two").json()["id"] == "two"
    assert server.get("/v1/models/three").status_code == 404
    one, two = server.get("/pyskip/models").json()["data"]
    assert (one["n_layer"], one["skippable"], one["skip"]) == (6, list(range(6)), "off")
    assert one["profile"]["curve"]
    assert set(one["profile"]["curve"][0]) == {"rate", "ppl_ratio", "ideal_speedup"}
    assert two["profile"] is None
    assert said(chat(server, model="one")) != said(chat(server, model="two"))
    assert chat(server, model="two")["model"] == "two"
    assert said(chat(server)) == said(chat(server, model="one"))
    assert server.get("/health").json()["status"] == "ok"


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (b"{", None, "not valid JSON"),
        (b"\xff\xfe", None, "JSON"),
        (b"", None, "JSON object"),
        (b"[" * 100_000, None, "parsing"),
        (b'{"messages": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", None, "parsing"),
        ([], None, "JSON object"),
        ({"messages": 3}, "messages", "list"),
        ({"messages": []}, "messages", "at least one"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, "messages", "'nobody', expected"),
        (
            {"messages": [{"role": "user", "content": 3}]},
            "messages",
            "messages.0.content: ",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "messages",
            "not text",
        ),
        ({"messages": MESSAGES, "temperature": math.nan}, "temperature", "finite"),
        ({"messages": MESSAGES, "temperature": "hot"}, "temperature", "number"),
        ({"messages": MESSAGES, "max_tokens": 0}, "max_tokens", "greater"),
        ({"messages": MESSAGES, "max_tokens": 1.5}, "max_tokens", "integer"),
        ({"messages": MESSAGES, "n": 2}, "n", "expected 1"),
        ({"messages": MESSAGES, "stop": ""}, "stop", "empty"),
        ({"messages": MESSAGES, "skip": "bogus"}, "skip", "bogus"),
        ({"messages": MESSAGES, "skip": 2}, "skip", "rate"),
        ({"messages": MESSAGES, "skip": True}, "skip", "specification"),
        ({"messages": MESSAGES, "skip": math.nan}, "skip", "specification"),
        ({"messages": MESSAGES, "skip": ["off"]}, "skip", "specification"),
        ({"messages": MESSAGES, "skip": "static:99"}, "skip", "99"),
        ({"messages": MESSAGES, "skip": 0.4, "model": "two"}, "skip", "and two.gguf has none"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', None, "surrogate"),
        ({"messages": MESSAGES, "logit_bias": {"999999": 1}}, "logit_bias", "999999"),
        ({"messages": MESSAGES, "logit_bias": {"1": 1e30}}, "logit_bias", "-100"),
        ({"messages": MESSAGES, "grammar": 'root ::= ((("a"?){100}){100}){10}'}, "grammar", "not supported"),
        ({"messages": MESSAGES, "logprobs": True}, "logprobs", "not supported"),
        ({"messages": MESSAGES, "response_format": {"type": "json_schema"}}, "response_format", "schema"),
        (
            {"messages": MESSAGES, "response_format": {"type": "json_object", "schema": {"$ref": "https://x.test/"}}},
            "response_format",
            "schema",
        ),
    ],
)
def test_bad_requests(server: Running, body: Any, param: str | None, words: str) -> None:
    answer = server.post(CHAT, body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert words in error["message"]
    assert len(error["message"]) <= 500
    chat(server, max_tokens=1)  # it goes on


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"type": "string"}, "maxItems": 10**9},
        {"properties": {"a": {"type": "string", "minLength": 10**9}}},
        {"anyOf": [{"type": "integer", "minimum": -(10**300)}]},
        {"type": "integer", "maximum": 1e300},
        {"type": "string", "pattern": "^((a?){100}){100}$"},
        {"type": "string", "pattern": "^a{9999999999}$"},
        {"type": "string", "pattern": "^" + "a?" * 1000 + "$"},
        {"type": "object", "properties": {str(i): {"type": "string"} for i in range(5000)}},
        {"$ref": "#"},
        {"type": "nothing"},
        [],
    ],
)
def test_schemas_that_make_no_grammar(server: Running, schema: Any) -> None:
    """Neither a hang, nor any JSON instead of what was asked for."""
    for more in (
        {"response_format": {"type": "json_object", "schema": schema}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}], "tool_choice": "required"},
    ):
        answer = server.post(CHAT, {"messages": MESSAGES, "max_tokens": 2, **more})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == next(iter(more))


def test_too_long_for_the_context(server: Running) -> None:
    answer = server.post(CHAT, {"messages": [{"role": "user", "content": LONG * 4}]})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    streamed = server.post(CHAT, {"messages": [{"role": "user", "content": LONG * 4}], "stream": True})
    assert streamed.status_code == 400  # before the stream begins


def test_other_paths(server: Running) -> None:
    for answer, status in (
        (server.get("/nothing"), 404),
        (server.get(CHAT), 405),
        (server.post(CHAT, {"messages": MESSAGES, "model": "three"}), 404),
        (server.get("/page/../app.py"), 404),
        (server.get("/page/%2e%2e/app.py"), 404),
    ):
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_form_is_no_request(server: Running) -> None:
    """What a page of another origin could send without being asked first."""
    body = json.dumps({"messages": MESSAGES})
    answer = server.post(CHAT, body, headers={"Content-Type": "text/plain"})
    assert answer.status_code == 400
    assert "Content-Type" in answer.json()["error"]["message"]


def test_stop_sequences_and_characters_in_parts(tiny: Path) -> None:
    """A stream holds back what may begin a stop sequence, and what is no whole character; bytes that are none at all
    hold nothing back."""
    llm = open_served(tiny)
    text = "a日本 w1 END"
    tokens = llm.tokenize(text.encode(), add_bos=False)
    while not llm.detokenize(tokens).decode("utf-8", "ignore").startswith("a"):  # the space that it begins with
        del tokens[0]
    vocabulary = {llm.detokenize([token]): token for token in range(llm.n_vocab())}
    lone = vocabulary[b"\xe6"]
    assert len(tokens) > 10

    def said(tokens: list[int], **more: Any) -> list[tuple[str, str | None]]:
        llm.generate = lambda *_args, **_kwargs: (token for token in tokens)  # type: ignore[method-assign,assignment]
        chunks = create_completion(llm, [1], stream=True, **more)
        return [(chunk["choices"][0]["text"], chunk["choices"][0]["finish_reason"]) for chunk in chunks]

    plain = said(tokens)
    assert "".join(piece for piece, _ in plain) == text
    assert [reason for _, reason in plain] == [None] * (len(plain) - 1) + ["stop"]
    assert "日" in [piece for piece, _ in plain]
    stopped = said(tokens, stop=["w1 E", "本 w2"])
    assert "".join(piece for piece, _ in stopped) == "a日本 "
    assert all("w" not in piece for piece, _ in stopped)
    assert said(tokens, stop=["日"]) == [("a", None), ("", "stop")]
    assert said(tokens[:1], stop=["aa"]) == [("a", None), ("", "stop")]
    assert [piece for piece, _ in said([lone, *tokens[:1] * 3])] == ["a", "a", "a", ""]
    cut = said(tokens, max_tokens=3)
    assert cut[-1] == ("", "length")
    assert "".join(piece for piece, _ in cut) == "a"  # the character is not whole
    llm.close()


def test_max_tokens_and_the_end_of_the_context(server: Running) -> None:
    for n in range(1, 8):
        answer = chat(server, max_tokens=n)
        assert answer["usage"]["completion_tokens"] == n
        assert answer["choices"][0]["finish_reason"] == "length"
    answer = chat(server, messages=[{"role": "user", "content": LONG}], max_tokens=None)
    assert answer["usage"]["total_tokens"] == 1024
    assert answer["choices"][0]["finish_reason"] == "length"


def test_the_end_of_the_text_is_no_token_of_it(server: Running) -> None:
    end = server.service.models["one"].token_eos()
    answer = chat(server, logit_bias={str(end): 100}, max_tokens=50)
    assert (said(answer), answer["choices"][0]["finish_reason"]) == ("", "stop")
    assert answer["usage"]["completion_tokens"] == 0


def test_echo(server: Running) -> None:
    body = {"prompt": "w1 w2", "max_tokens": 4, "temperature": 0}
    plain, echoed = (server.post("/v1/completions", {**body, "echo": echo}).json() for echo in (False, True))
    assert echoed["choices"][0]["text"] == "w1 w2" + plain["choices"][0]["text"]
    streamed = stream(server, "/v1/completions", {**body, "echo": True})
    assert "".join(chunk["choices"][0]["text"] for chunk in streamed) == echoed["choices"][0]["text"]
    assert server.post("/v1/completions", {**body, "prompt": ""}).status_code in (200, 400)
    for field in ({"suffix": "w9"}, {"logprobs": 2}):
        assert server.post("/v1/completions", {**body, **field}).json()["error"]["param"] == next(iter(field))


@pytest.mark.parametrize(("gather", "expected"), [(0.0, [[0], [1], [2]]), (math.inf, [[0], [1, 2]])])
def test_tokens_go_out_together(monkeypatch: pytest.MonkeyPatch, gather: float, expected: list[list[int]]) -> None:
    """The first at once, the next ones when GATHER seconds are over, and the end with what waits."""
    monkeypatch.setattr(turns, "GATHER", gather)

    async def taken() -> list[list[int]]:
        async def take() -> list[list[int]]:
            return [batch async for batch in turn.batches()]

        turn = turns.Turn(None, lambda _turn: None)  # type: ignore[arg-type]
        taker = asyncio.create_task(take())
        for item in (0, 1, 2, turns.END):
            turn.put(item)
            for _ in range(4):
                await asyncio.sleep(0)
        return await taker

    assert asyncio.run(taken()) == expected

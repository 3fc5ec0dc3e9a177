"""pyskip serve: OpenAI's endpoints and errors, and a policy for each request that leaves nothing to the next."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from serving import ALTERNATE, Running, running

import pyskip
from pyskip.calibration.write import add_static
from pyskip.models.profile import StaticStep
from pyskip.runtime.generation import Generation, chat_tokens

pytestmark = pytest.mark.loopback

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "w1 w2 w3"}]
LONG = " ".join(f"w{i % 30 + 1}" for i in range(150))
EXACT = (
    "-ctk",
    "f32",
    "-ctv",
    "f32",
    "-fa",
    "off",
)  # behind LONGER: batches differ too little for ties
LONGER = ("--", "--override-kv", "llama.context_length=int:1024")  # the tiny model says 512
SKIPS = (
    "off",
    "static:1,3",
    ALTERNATE,
    0.4,
    "profile:rate=0.3,hold=0,warmup=2",
    "static:2,attn=1+3",
    "adaskip:n=9",
    "prompt:rate=0.4",
    "profile:rate=0.3,attn=0.4,warmup=2",
    "static:n=2",
)


@pytest.fixture(scope="module")
def model(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a profile that names two sublayers."""
    from conftest import make_profile

    path = tmp_path_factory.mktemp("served") / "one.gguf"
    path.write_bytes(tiny.read_bytes())
    profile = path.with_name("one.skip.gguf")
    make_profile.make_profile(path, profile, attention=True)
    add_static(profile, profile, {"loss": [StaticStep(3, False, 0.1, 1.1), StaticStep(2, True, 0.2, 1.2)]})
    return path


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Running]:
    with running(str(model), "-c", "1024", "--skip", "off", *LONGER) as server:
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


def content(chunk: dict[str, Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])


def test_skip_by_request(server: Running, model: Path) -> None:
    """What the library says and skips, a request is told."""
    llm = pyskip.Llama(model, n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False)
    tokens = chat_tokens(llm, MESSAGES)
    for skip in SKIPS:
        llm.reset()
        llm.skip = skip
        generation = Generation(llm, tokens, max_tokens=12, temp=0, seed=None)
        expected = "".join(generation)
        usage = generation.answer()
        for _ in range(2):
            body = {"prompt": tokens, "n_predict": 12, "temperature": 0, "skip": skip}
            answer = server.post("/completion", body).json()
            assert answer["content"] == expected
            assert answer["timings"]["skip_rate"] == pytest.approx(usage.skip.rate)
            assert answer["timings"]["attention_skip_rate"] == pytest.approx(usage.skip.attention_rate)
            assert (answer["tokens_evaluated"], answer["tokens_predicted"]) == (usage.n_prompt, 12)
        assert (usage.skip.rate > 0) == (skip != "off")
        assert (usage.skip.attention_rate > 0) == any(part in str(skip) for part in ("attn", "adaskip", "n=2"))
    llm.close()


@pytest.mark.parametrize("skip", ["adaskip:n=3", "prompt:rate=0.4"])
def test_what_a_prompt_showed_is_not_anothers(model: Path, skip: str) -> None:
    """On one slot, whose prompts leave it for the server's cache and come back, alone and with another end."""
    prompts = [" ".join(f"w{first + i}" for i in range(40)) for first in (0, 50)]
    prompts += [prompts[0] + " w7 w7 w7", prompts[1] + " w3"]

    def ask(server: Running, prompt: str) -> tuple[str, list[Any]]:
        body = {"prompt": prompt, "n_predict": 24, "temperature": 0, "skip": skip, "skip_trace": True}
        answer = server.post("/completion", body).json()
        return answer["content"], answer["skip_trace"]

    exact = ("--parallel", "1", "-ctk", "f32", "-ctv", "f32", "-fa", "off")
    with running(str(model), "-c", "1024", *LONGER, *exact, "--no-cache-prompt", "--cache-ram", "0") as server:
        alone = [ask(server, prompt) for prompt in prompts]
    assert alone[0] != alone[1]
    with running(str(model), "-c", "1024", *LONGER, *exact) as server:
        for i in (0, 1, 0, 2, 1, 3, 0, 0):
            assert ask(server, prompts[i]) == alone[i], i


def test_a_request_without_skip_gets_the_servers_own(model: Path) -> None:
    with running(str(model), "--skip", "static:2") as server:
        own = chat(server)
        assert own["usage"]["skip_rate"] == pytest.approx(1 / 6)
        assert chat(server, skip="off")["usage"]["skip_rate"] == 0
        assert server.post(CHAT, {"messages": MESSAGES, "skip": "static:77"}).status_code == 400
        assert said(chat(server, skip=None)) == said(own)
        assert server.get("/pyskip/models").json()["data"][0]["skip"] == "static:2"


def test_the_default_is_the_profiles_recommended_point(model: Path) -> None:
    with running(str(model)) as server:
        assert server.get("/pyskip/models").json()["data"][0]["skip"] == "profile"
        assert said(chat(server, max_tokens=40)) == said(chat(server, max_tokens=40, skip="profile"))


def test_requests_at_a_time_are_what_they_are_alone(model: Path) -> None:
    """Eight, each with another policy, in the same batches."""
    skips = (*SKIPS, 0.2, "profile:rate=0.3,prompt=0.3", "profile:rate=0.25,prefill=1")
    bodies = [
        {"messages": [{"role": "user", "content": LONG + f" w{i}"}], "skip": skip, "max_tokens": 40, "skip_trace": True}
        for i, skip in enumerate(skips)
    ]
    with running(str(model), "-c", "1024", *LONGER, "--parallel", "8", "--no-cache-prompt", *EXACT) as server:
        alone = [chat(server, **body) for body in bodies]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda body: chat(server, **body), bodies))
    for one, other in zip(alone, together, strict=True):
        assert said(one) == said(other)
        assert one["skip_trace"] == other["skip_trace"]
        assert one["usage"]["skip_rate"] == other["usage"]["skip_rate"]
    assert len({answer["usage"]["skip_rate"] for answer in together}) > 4


def test_answers_do_not_hang_on_the_past(model: Path) -> None:
    """Each as from a server that was just started, whatever came before: prefixes of prompts that were answered under
    other policies, and whole conversations."""
    first = {"role": "user", "content": LONG}
    bodies: list[dict[str, Any]] = []
    for skip in SKIPS:
        for rest in ([], [{"role": "assistant", "content": "w3"}, {"role": "user", "content": "w4 w5"}]):
            bodies.append({"messages": [first, *rest], "skip": skip, "max_tokens": 24})
    alone = []
    with running(str(model), "-c", "1024", *LONGER, "--no-cache-prompt", *EXACT) as fresh:
        for body in bodies:
            alone.append(said(chat(fresh, **body)))
    n_cached = 0
    with running(str(model), "-c", "1024", *LONGER, *EXACT) as server:
        for i in (0, 1, 2, 3, 1, 0, 4, 1, 5, 6, 7, 3, 2, 7, 0, 6, 6, 8, 9, 8):
            answer = chat(server, **bodies[i])
            assert said(answer) == alone[i], bodies[i]["skip"]
            n_cached += answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert n_cached > 1000  # and that is not because nothing was used again


def test_stream(server: Running) -> None:
    body = {"messages": MESSAGES, "max_tokens": 9, "temperature": 0, "skip": ALTERNATE}
    whole = chat(server, **body)
    chunks = stream(server, CHAT, {**body, "stream_options": {"include_usage": True}, "skip_trace": True})
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["skip_rate"] == pytest.approx(1 / 3)
    assert chunks[-1]["usage"]["tokens_per_second"] > 0
    assert chunks[-1]["usage"]["completion_tokens"] == 9
    assert "".join(map(content, chunks)) == said(whole)
    traced = [piece for chunk in chunks for piece in chunk.get("skip_trace", ())]
    assert "".join(piece["text"] for piece in traced) == said(whole)
    assert traced[0]["skipped"] == []  # the prompt's decode, which is dense
    assert len(traced) == 9
    assert all(piece["skipped"] == [2, 4] for piece in traced[1:])
    assert not any("usage" in chunk or "skip_trace" in chunk for chunk in stream(server, CHAT, body))


def test_trace_of_a_whole_answer(server: Running) -> None:
    answer = chat(server, skip=ALTERNATE, skip_trace=True)
    assert "".join(piece["text"] for piece in answer["skip_trace"]) == said(answer)
    assert len(answer["skip_trace"]) == answer["usage"]["completion_tokens"]
    stop = next(piece["text"] for piece in answer["skip_trace"] if len(piece["text"]) > 2)
    cut = chat(server, skip=ALTERNATE, skip_trace=True, stop=[stop[1:]])
    assert said(cut) == said(answer)[: said(answer).index(stop[1:])]
    assert "".join(piece["text"] for piece in cut["skip_trace"]) == said(cut)
    assert cut["choices"][0]["finish_reason"] == "stop"
    assert "skip_trace" not in chat(server)
    of_both = chat(server, skip="static:2,attn=1+3", skip_trace=True)
    assert all((t["skipped"], t["attention_skipped"]) == ([2], [1, 3]) for t in of_both["skip_trace"][1:])
    rates = of_both["usage"]["skip_rate"], of_both["usage"]["attention_skip_rate"]
    assert rates == (pytest.approx(1 / 6), pytest.approx(2 / 6))


@pytest.mark.parametrize("path", ["/v1/completions", "/completion"])
def test_completions(server: Running, path: str) -> None:
    body = {"prompt": "w1 w2", "max_tokens": 6, "temperature": 0, "skip": "static:1"}
    whole = server.post(path, body).json()
    if path == "/completion":
        assert whole["timings"]["skip_rate"] == pytest.approx(1 / 6)
        return
    chunks = stream(server, path, body)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]
    assert whole["usage"]["skip_rate"] == pytest.approx(1 / 6)


def test_the_other_endpoints_that_generate(server: Running) -> None:
    responses = {"input": "w1 w2", "max_output_tokens": 8, "temperature": 0, "skip": "static:1"}
    assert server.post("/v1/responses", responses).json()["usage"]["skip_rate"] == pytest.approx(1 / 6)
    messages = {"messages": MESSAGES, "max_tokens": 8, "temperature": 0, "skip": "static:1"}
    assert server.post("/v1/messages", messages).json()["usage"]["skip_rate"] == pytest.approx(1 / 6)
    for path, body in (("/v1/responses", responses), ("/v1/messages", messages)):
        answer = server.post(path, {**body, "skip": "bogus"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "skip")


def test_prompts_skip_if_asked_to(server: Running) -> None:
    long = [{"role": "user", "content": LONG}]
    dense, skipped = (chat(server, messages=long, skip=0.3, skip_prompt=rate) for rate in (0, 0.5))
    assert said(dense) != said(skipped)
    answer = server.post(CHAT, {"messages": long, "skip": "static:1", "skip_prompt": 0.5})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "skip_prompt")


def test_several_choices(server: Running) -> None:
    answer = chat(server, n=3, skip=ALTERNATE, temperature=1.0, seed=1)
    assert len(answer["choices"]) == 3
    assert answer["usage"]["skip_rate"] == pytest.approx(1 / 3)


def test_models(server: Running) -> None:
    assert [model["id"] for model in server.get("/v1/models").json()["data"]] == ["one"]
    (one,) = server.get("/pyskip/models").json()["data"]
    assert (one["id"], one["n_layer"], one["n_ctx"], one["skip"]) == ("one", 6, 1024, "off")
    assert one["skippable"] == list(range(6))
    assert set(one["profile"]["curve"][0]) == {"rate", "ppl_ratio", "ideal_speedup"}
    assert one["profile"]["max_static"] == {"loss": 2, "cosine": 0, "norm": 0}
    assert server.get("/health").json()["status"] == "ok"


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (b"{", None, "not valid JSON"),
        (b"\xff\xfe", None, "JSON"),
        (b"", None, "JSON object"),
        (b"[" * 100_000, None, "nested"),
        (b'{"messages": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", None, "nested"),
        ([], None, "JSON object"),
        ({"messages": 3}, "messages", "messages"),
        ({"messages": [{"role": "user", "content": 3}]}, None, "content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            None,
            "image",
        ),
        ({"messages": MESSAGES, "temperature": "hot"}, "temperature", "number"),
        ({"messages": MESSAGES, "skip": "bogus"}, "skip", "bogus"),
        ({"messages": MESSAGES, "skip": 2}, "skip", "rate"),
        ({"messages": MESSAGES, "skip": True}, "skip", "specification"),
        ({"messages": MESSAGES, "skip": ["off"]}, "skip", "specification"),
        ({"messages": MESSAGES, "skip": "static:99"}, "skip", "99"),
        ({"messages": MESSAGES, "skip": "static:n=3"}, "skip", "the profile names 2"),
        ({"messages": MESSAGES, "skip": "static:n=1,by=norm"}, "skip", "the profile names no sublayers"),
        ({"messages": MESSAGES, "skip": "profile:rate=0.99"}, "skip", "curve"),
        ({"messages": MESSAGES, "skip_trace": 1}, "skip_trace", "true"),
        ({"messages": MESSAGES, "skip": math.nan}, None, "not valid JSON"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', None, "surrogate"),
        ({"messages": MESSAGES, "max_tokens": -7}, "max_tokens", "between"),
        ({"messages": MESSAGES, "response_format": {"type": "nothing"}}, None, "response_format"),
    ],
)
def test_bad_requests(server: Running, body: Any, param: str | None, words: str) -> None:
    answer = server.post(CHAT, body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert words in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) <= 500
    chat(server, max_tokens=1)  # it goes on


def test_a_specification_is_read_as_the_library_reads_it(server: Running) -> None:
    from pyskip.errors import PolicyError
    from pyskip.policy import parse_skip

    good = (
        "off", "0.25", "0", ".5", "cosine:threshold=0.5,run=0,cold_start=1,cold_end=1", "static:1", "static:3,1,1",
        " static: 2 , 4", "profile", "profile:error=0.1", "profile:rate=0.2,prefill=1", "profile:hold=0",
        "random:rate=0.5,seed=3", "random:stand_in=1,error=0.1", "static:attn=2+1+2", "static:1, attn=4,2", "adaskip",
        "adaskip:n=3", "prompt", "prompt:rate=0.5", "profile:rate=0.2,attn=0.3", "profile:error=0.1,attn=0.3,hold=0",
        "random:attn=0.5", "random:attn=0.5,stand_in=1", "profile:attn=0", "static:1,attn=2, stand_in=1",
        "static:1,stand_in=0", "static:n=2", "static: n=1, by=loss,stand_in=0",
    )  # fmt: skip
    bad = (
        "off:", "static:", "static:x", "static:-1", "cosine:run=1.5", "cosine:run=1,run=1", "cosine:runs=1", "2", "",
        "profile:rate=2", "profile:rate=0.1,error=0.1", "profile:prefill=2", "random:error=0.1", "nan", "0x1", "1e999",
        "profile:rate=nan", "profile:prompt=0.1,prefill=1", "bogus", "cosine:threshold=inf", "custom:decide",
        "static:attn=", "static:attn=1+", "static:attn=1,attn=2", "static:ffn=1", "adaskip:n=0", "adaskip:8",
        "prompt:rate=2", "prompt:n=1", "profile:attn=2", "profile:attn=0.1,attn=0.1", "random:attn=-1",
        "prompt:attn=0.1", "static:n=0", "static:n=2,3", "static:2,by=norm", "static:n=2,by=luck",
        "static:2,stand_in=2", "static:n=2,n=2", "static:stand_in=1",
    )  # fmt: skip
    for text in good:
        parse_skip(text)
        chat(server, max_tokens=1, skip=text)
    for text in bad:
        with pytest.raises(PolicyError):
            parse_skip(text)
        answer = server.post(CHAT, {"messages": MESSAGES, "max_tokens": 1, "skip": text})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "skip"), text


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"type": "string"}, "maxItems": 10**9},
        {"properties": {"a": {"type": "string", "minLength": 10**9}}},
        {"anyOf": [{"type": "integer", "minimum": -(10**300)}]},
        {"type": "integer", "maximum": 1e300},
        {"type": "string", "pattern": "^((a?){100}){100}$"},
        {"type": "string", "pattern": "^a{9999999999}$"},
        {"type": "string", "pattern": "^" + "a?" * 127 + "$"},
        {"type": "object", "properties": {str(i): {"type": "string"} for i in range(900)}},
        {"type": "nothing"},
    ],
)
def test_schemas_that_make_no_grammar(server: Running, schema: Any) -> None:
    """Neither a hang, nor any JSON instead of what was asked for."""
    for more in (
        {"response_format": {"type": "json_object", "schema": schema}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}], "tool_choice": "required"},
    ):
        answer = server.post(CHAT, {"messages": MESSAGES, "max_tokens": 2, **more}, timeout=20)
        assert answer.status_code == 400, answer.text


def test_too_long_for_the_context(server: Running) -> None:
    for is_streamed in (False, True):
        body = {"messages": [{"role": "user", "content": LONG * 8}], "stream": is_streamed}
        answer = server.post(CHAT, body)
        assert answer.status_code == 400  # of a stream before it begins
        assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_other_paths(server: Running) -> None:
    for path in ("/nothing", "/page/../app.py", "/page/%2e%2e/app.py", "/v1/nothing"):
        answer = server.get(path)
        assert answer.status_code == 404
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_what_opens_the_machine_is_off(server: Running) -> None:
    for path in ("/tools", "/cors-proxy?url=http://127.0.0.1"):
        assert server.get(path).status_code == 403


def test_a_form_is_no_request(server: Running) -> None:
    """What a page of another origin could send without being asked first."""
    body = json.dumps({"messages": MESSAGES})
    for path in (CHAT, "/completion", "/tokenize", "/v1/embeddings", "/slots/0?action=erase"):
        answer = server.post(path, body, headers={"Content-Type": "text/plain"})
        assert answer.status_code == 400
        assert "Content-Type" in answer.json()["error"]["message"]


def test_several_models(model: Path, tmp_path: Path) -> None:
    """A process for each, by llama-server's router."""
    from conftest import make_random

    make_random.make(tmp_path / "two.gguf", make_random.SHAPES["tiny"], seed=7)
    with running(f"a={model}", str(tmp_path / "two.gguf"), "--skip", "static:1") as server:
        assert sorted(m["id"] for m in server.get("/v1/models").json()["data"]) == ["a", "two"]
        a, two = chat(server, model="a"), chat(server, model="two")
        assert said(a) != said(two)
        assert a["usage"]["skip_rate"] == two["usage"]["skip_rate"] == pytest.approx(1 / 6)
        answer = server.post(CHAT, {"messages": MESSAGES, "model": "a", "skip": "bogus"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "skip")
        assert server.post(CHAT, {"messages": MESSAGES, "model": "three"}).status_code == 404

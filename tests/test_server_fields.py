"""Every field that the official clients know, as null, at every endpoint; texts in schemas, logprobs, ranks."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import openai
import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params
from serving import Running, running

pytestmark = pytest.mark.loopback

LONGER = ("--", "--override-kv", "llama.context_length=int:8192")  # the tiny model says 512
MESSAGES: list[Any] = [{"role": "user", "content": "w1 w2 w3"}]
NEEDED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "tiny", "messages": MESSAGES, "max_tokens": 2},
    "/v1/completions": {"model": "tiny", "prompt": "w1", "max_tokens": 2},
    "/v1/embeddings": {"model": "tiny", "input": "w1"},
    "/v1/responses": {"model": "tiny", "input": "w1", "max_output_tokens": 2},
    "/v1/messages": {"model": "tiny", "messages": MESSAGES, "max_tokens": 2},
    "/completion": {"prompt": "w1", "n_predict": 2},
    "/infill": {"input_prefix": "w1", "input_suffix": "w2", "n_predict": 2},
    "/tokenize": {"content": "w1"},
    "/apply-template": {"messages": MESSAGES},
}
OWN = ("skip", "skip_prompt", "skip_trace", "target_tps", "max_skip")
LLAMA = (
    "n_keep", "cache_prompt", "id_slot", "samplers", "grammar", "json_schema", "lora", "n_probs", "min_keep",
    "t_max_predict_ms", "response_fields", "top_k", "min_p", "typical_p", "repeat_penalty", "mirostat", "stop", "seed",
    "dry_multiplier", "return_progress", "return_tokens", "timings_per_token", "stream", "logit_bias", "ignore_eos",
    "chat_template_kwargs", "reasoning_format", "parse_tool_calls", "add_special", "with_pieces", "tools",
    "tool_choice",
)  # fmt: skip


def fields(path: str) -> set[str]:
    known: dict[str, Any] = {
        "/v1/chat/completions": chat_create_params.CompletionCreateParamsBase,
        "/v1/completions": completion_create_params.CompletionCreateParamsBase,
        "/v1/embeddings": embedding_create_params.EmbeddingCreateParams,
        "/v1/responses": response_create_params.ResponseCreateParamsBase,
    }
    if path in known:
        return set(get_type_hints(known[path]))
    if path == "/v1/messages":
        anthropic = pytest.importorskip("anthropic")
        return set(get_type_hints(anthropic.types.message_create_params.MessageCreateParamsBase))
    return set()


@pytest.fixture(scope="module")
def server(tiny: Path) -> Iterator[Running]:
    with running(str(tiny), "-c", "2048", "--embedding", *LONGER) as server:
        yield server


@pytest.mark.parametrize("path", NEEDED)
def test_null(server: Running, path: str) -> None:
    """Of each field alone, and of all at a time."""
    needed = NEEDED[path]
    optional = sorted({*fields(path), *OWN, *LLAMA} - set(needed))
    expected = server.post(path, needed).status_code
    assert expected == (501 if path == "/infill" else 200)  # a model without its tokens
    for some in ([name] for name in optional):
        answer = server.post(path, {**needed, **dict.fromkeys(some)})
        assert answer.status_code == expected, f"{some}: {answer.text}"
    assert server.post(path, {**needed, **dict.fromkeys(optional)}).status_code == expected


ODD = ("é😀", 'a "b"', "back\\slash", "new\nline", "tab\t", "", "\u2028", "</s>")


@pytest.mark.parametrize("value", ODD)
def test_texts_in_schemas(server: Running, value: str) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", http_client=None, max_retries=0, timeout=30)
    with client:
        for schema in ({"const": value}, {"enum": [value]}):
            properties = {"x": schema, value or "name": {"const": 1}}
            whole = {
                "type": "object",
                "properties": properties,
                "required": list(properties),
                "additionalProperties": False,
            }
            form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": whole, "strict": True}}
            answer = client.chat.completions.create(
                model="tiny", messages=MESSAGES, max_tokens=300, temperature=0, response_format=form
            )
            assert json.loads(answer.choices[0].message.content or "") == {"x": value, value or "name": 1}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_bytes_that_are_no_character_hold_nothing_back(server: Running, path: str) -> None:
    """A random model says bytes beyond any order: what follows them in a stream still comes as it is made."""
    for seed in range(3):
        body = {**NEEDED[path], "max_tokens": 60, "temperature": 1, "seed": seed, "ignore_eos": True, "stream": True}
        pieces = []
        for line in server.post(path, body).text.splitlines():
            if line.startswith("data: {"):
                choice = json.loads(line[6:])["choices"][0]
                pieces.append(choice.get("text") or choice.get("delta", {}).get("content") or "")
        assert "".join(pieces).count("\ufffd") >= 3
        assert max(map(len, pieces)) <= 16  # no more than the token before, whose character may have gone on
        assert sum(map(bool, pieces)) >= 30


def test_logprobs_add_up(server: Running) -> None:
    body = {**NEEDED["/v1/chat/completions"], "logprobs": True, "top_logprobs": 20, "temperature": 0, "max_tokens": 8}
    content = server.post("/v1/chat/completions", body).json()["choices"][0]["logprobs"]["content"]
    assert content
    for token in content:
        ranked = [top["logprob"] for top in token["top_logprobs"]]
        assert ranked == sorted(ranked, reverse=True)
        assert len(ranked) == 20
        assert token["logprob"] == pytest.approx(ranked[0], abs=1e-4)
        assert sum(map(math.exp, ranked)) <= 1.001


def test_rerank(tiny: Path) -> None:
    with running(str(tiny), "-c", "2048", "--", "--reranking", *LONGER[1:]) as server:
        body = {"query": "w1", "documents": ["w2", "w3 w4", "w5"], "top_n": 2}
        answer = server.post("/v1/rerank", body)
        assert answer.status_code == 200, answer.text
        results = answer.json()["results"]
        assert len(results) == 2
        assert results[0]["relevance_score"] >= results[1]["relevance_score"]
        wrong: list[dict[str, Any]] = [{"query": None}, {"documents": []}, {"documents": None}, {"documents": "w1"}]
        for bad in wrong:
            assert server.post("/v1/rerank", {**body, **bad}).status_code == 400
        assert server.post("/v1/rerank", {**body, "top_n": None, "return_text": None}).status_code == 200

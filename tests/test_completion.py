"""Completions as OpenAI's clients read them: seeds, log-probabilities, echoes, unit vectors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp.llama import LogitsProcessorList

import pyskip

import llama_cpp  # isort: skip


@pytest.fixture
def small(tiny: Path) -> Iterator[pyskip.Llama]:
    kwargs: dict[str, Any] = {"n_ctx": 128, "n_threads": 1, "n_threads_batch": 1, "logits_all": True, "verbose": False}
    with closing(pyskip.Llama(tiny, **kwargs)) as llm:
        yield llm


def say(llm: pyskip.Llama, **kwargs: Any) -> str:
    return str(llm.create_completion("w1 w2", max_tokens=12, temperature=1.5, **kwargs)["choices"][0]["text"])


def test_unseeded_is_random(tiny: Path, small: pyskip.Llama) -> None:
    assert len({say(small) for _ in range(4)}) > 1
    program = (
        f"import pyskip; llm = pyskip.Llama({str(tiny)!r}, n_ctx=128, n_threads=1, verbose=False); "
        "print(llm('w1 w2', max_tokens=12, temperature=1.5)['choices'][0]['text'])"
    )
    runs = [subprocess.run([sys.executable, "-c", program], capture_output=True, text=True) for _ in range(3)]
    assert [run.returncode for run in runs] == [0, 0, 0], runs[0].stderr
    assert len({run.stdout for run in runs}) > 1


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 2])
def test_seeded(tiny: Path, small: pyskip.Llama, seed: int) -> None:
    assert say(small, seed=seed) == say(small, seed=seed)
    small.set_seed(seed)
    first = [say(small), say(small)]
    assert first[0] != first[1]
    small.set_seed(seed)
    assert [say(small), say(small)] == first
    with closing(pyskip.Llama(tiny, n_ctx=128, n_threads=1, verbose=False, seed=seed)) as other:
        assert [say(other), say(other)] == first


def test_a_seed_of_one_call_is_not_the_next_one_s(small: pyskip.Llama) -> None:
    after = set()
    for _ in range(4):
        say(small, seed=7)
        after.add(say(small))
    assert len(after) > 1
    assert len({say(small, seed=-1) for _ in range(4)}) > 1


def test_generate_without_a_seed(small: pyskip.Llama) -> None:
    def take() -> tuple[int, ...]:
        small.reset()
        return tuple(token for token, _ in zip(small.generate([1, 5], temp=1.5), range(10), strict=False))

    say(small, seed=3)
    assert len({take() for _ in range(4)}) > 1
    small.set_seed(3)
    assert take() == take()


@pytest.mark.parametrize("echo", [False, True])
def test_logprobs(small: pyskip.Llama, echo: bool) -> None:
    answer = small.create_completion("w1 w2 w3", max_tokens=4, temperature=0, logprobs=2, echo=echo)
    choice = json.loads(json.dumps(answer))["choices"][0]
    found = choice["logprobs"]
    assert choice["text"].startswith("w1 w2 w3") == echo
    n_prompt = len(small.tokenize(b"w1 w2 w3", add_bos=False))
    n = answer["usage"]["completion_tokens"] + (n_prompt if echo else 0)
    assert [len(values) for values in found.values()] == [n] * 4
    whole = choice["text"] if echo else "w1 w2 w3" + choice["text"]
    for text, offset in zip(found["tokens"], found["text_offset"], strict=True):
        assert whole[offset : offset + len(text)] == text

    tokens = small.tokenize(b"w1 w2 w3") + small._taken[1][: answer["usage"]["completion_tokens"]]
    small.reset()
    small.eval(tokens)
    rows = small.logits_to_logprobs(small.scores[: len(tokens)])
    expected = [float(rows[i - 1, tokens[i]]) for i in range(len(tokens) - n, len(tokens))]
    start = 1 if echo else 0
    assert found["token_logprobs"][start:] == pytest.approx(expected[start:], abs=1e-4)
    if echo:
        assert found["token_logprobs"][0] is None
        assert found["top_logprobs"][0] is None
    else:
        assert [max(top.values()) for top in found["top_logprobs"]] == found["token_logprobs"]  # temperature 0
    assert all(2 <= len(top) <= 3 for top in found["top_logprobs"][start:])


def test_echo(small: pyskip.Llama) -> None:
    kwargs: dict[str, Any] = {"max_tokens": 4, "temperature": 0}
    plain = small.create_completion("w1 w2", **kwargs)["choices"][0]["text"]
    parts = [part["choices"][0]["text"] for part in small.create_completion("w1 w2", stream=True, echo=True, **kwargs)]
    assert "".join(parts) == "w1 w2" + plain
    tokens = small.tokenize(b"w1 w2")
    assert small.create_completion(tokens, echo=True, **kwargs)["choices"][0]["text"] == "w1 w2" + plain


def test_logprobs_without_logits(tiny: Path) -> None:
    with closing(pyskip.Llama(tiny, n_ctx=64, verbose=False)) as llm, pytest.raises(ValueError, match="logits_all"):
        llm.create_completion("w1", logprobs=1)


@pytest.mark.parametrize("pooling_type", [0, 1])
def test_embeddings_are_unit_vectors(tiny: Path, pooling_type: int) -> None:
    with closing(pyskip.Llama(tiny, embedding=True, pooling_type=pooling_type, n_ctx=64, verbose=False)) as llm:
        texts = ["w1 w2", "w3 w4 w5"]
        unit = [item["embedding"] for item in llm.create_embedding(texts)["data"]]
        raw = [item["embedding"] for item in llm.create_embedding(texts, normalize=False)["data"]]
        for one, other, embedded in zip(unit, raw, llm.embed(texts), strict=True):
            np.testing.assert_allclose(np.linalg.norm(one, axis=-1), 1)
            np.testing.assert_allclose(other, embedded)
            norms = np.linalg.norm(other, axis=-1, keepdims=True)
            np.testing.assert_allclose(np.asarray(one) * norms, other, rtol=1e-5)


def test_chat_logprobs(small: pyskip.Llama) -> None:
    for top in (None, 2):
        answer = small.create_chat_completion(
            [{"role": "user", "content": "w1"}], max_tokens=3, temperature=0, logprobs=True, top_logprobs=top
        )
        content = json.loads(json.dumps(answer))["choices"][0]["logprobs"]["content"]
        assert len(content) == answer["usage"]["completion_tokens"]
        assert all(item["logprob"] <= 0 for item in content)


def test_bias_beside_a_processor(small: pyskip.Llama) -> None:
    """Upstream's list.extend() returns None, and both were gone."""
    seen: list[int] = []

    def process(tokens: Any, scores: Any) -> Any:
        seen.append(len(tokens))
        return scores

    kwargs: dict[str, Any] = {"max_tokens": 3, "temperature": 0, "logit_bias": {9: 1e4}}
    expected = small.create_completion("w1", **kwargs)["choices"][0]["text"]
    both = small.create_completion("w1", logits_processor=LogitsProcessorList([process]), **kwargs)
    assert both["choices"][0]["text"] == expected
    assert small._taken[1] == [9, 9, 9]
    assert len(seen) == 3


@pytest.mark.parametrize("spm", [False, True])
def test_infill(small: pyskip.Llama, monkeypatch: pytest.MonkeyPatch, spm: bool) -> None:
    for part, token in (("pre", 20), ("suf", 21), ("mid", 22)):
        monkeypatch.setattr(llama_cpp, f"llama_vocab_fim_{part}", lambda _, token=token: token)
    small.spm_infill = spm
    small.create_completion("w1", suffix="w2", max_tokens=1)
    before, after = (small.tokenize(text, add_bos=False) for text in (b"w1", b"w2"))
    start, end = [20, *before], [21, *after]
    assert small._taken[0] == [small.token_bos(), *(end + start if spm else start + end), 22]


@pytest.mark.parametrize("pooling_type", [0, 1])
def test_embeddings_of_several_texts_are_those_of_each(tiny: Path, pooling_type: int) -> None:
    with closing(pyskip.Llama(tiny, embedding=True, pooling_type=pooling_type, n_ctx=64, verbose=False)) as llm:
        texts = ["w1 w2", "w3 w4 w5", "w6"]
        both, n = llm.embed(texts, return_count=True)
        assert n == sum(len(llm.tokenize(text.encode())) for text in texts)
        for text, found in zip(texts, both, strict=True):
            np.testing.assert_allclose(found, llm.embed(text), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("error", [RuntimeError("mine"), KeyboardInterrupt()])
def test_what_a_logits_processor_raises(small: pyskip.Llama, error: BaseException) -> None:
    """It comes out; ctypes would print it, and the answer would go on without the processor."""
    calls = []

    def process(_: Any, logits: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise error
        return logits

    with pytest.raises(type(error)) as found:
        small.create_completion("w1", max_tokens=12, seed=1, logits_processor=LogitsProcessorList([process]))
    assert found.value is error
    assert len(calls) == 3
    with pytest.raises(ValueError, match="broadcast"):
        small.create_completion("w1", logits_processor=LogitsProcessorList([lambda _, logits: logits[:7]]))
    assert say(small, seed=1) == say(small, seed=1, logits_processor=LogitsProcessorList([lambda _, logits: logits]))


@pytest.mark.parametrize("token", [-1, 320, "x", 10**9])
def test_a_bias_of_no_token(small: pyskip.Llama, token: Any) -> None:
    with pytest.raises(pyskip.DecodeError, match=r"expected tokens from 0 to 319"):
        small.create_completion("w1", max_tokens=2, logit_bias={token: 1.0})
    with pytest.raises(pyskip.DecodeError, match="logit_bias"):
        small.create_chat_completion([{"role": "user", "content": "w1"}], max_tokens=2, logit_bias={token: 1.0})


def test_a_grammar_that_is_a_text(small: pyskip.Llama) -> None:
    with pytest.raises(TypeError, match=r"grammar is a str, expected a llama_cpp\.LlamaGrammar"):
        small.create_completion("w1", max_tokens=2, grammar='root ::= "x"')

"""Where texts end: by their length in the middle of a character, which several tokens make, and at stop texts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from parrot import make_parrot
from serving import Running, running

import pyskip
from pyskip.runtime.ending import stop_texts, text_before

SAYS = ("a", "b", *"é😀".encode())  # eight tokens a round
ROUND = "abé😀"
N_CTX = 64


def said(n: int) -> str:
    """The first n tokens, without half a character."""
    pieces = [piece.encode() if isinstance(piece, str) else bytes([piece]) for piece in SAYS]
    return b"".join(pieces[i % len(pieces)] for i in range(n)).decode("utf-8", "ignore")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_parrot(tmp_path_factory.mktemp("ending") / "endless.gguf", SAYS, endless=True)


@pytest.fixture(scope="module")
def llm(path: Path) -> Iterator[pyskip.Llama]:
    with closing(pyskip.Llama(path, n_ctx=N_CTX, n_threads=1, n_threads_batch=1, verbose=False)) as llm:
        yield llm


def complete(llm: pyskip.Llama, prompt: str, **kwargs: Any) -> tuple[str, str, int]:
    """Text, reason of its end and number of tokens; in pieces the text is the same."""
    answer = llm.create_completion(prompt, temperature=0, **kwargs)
    text, reason = answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]
    choices = [part["choices"][0] for part in llm.create_completion(prompt, temperature=0, stream=True, **kwargs)]
    assert "".join(choice["text"] for choice in choices) == text
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + [reason]
    return text, reason, answer["usage"]["completion_tokens"]


@pytest.mark.parametrize("n", range(1, 18))
def test_a_length(llm: pyskip.Llama, n: int) -> None:
    assert complete(llm, "\n", max_tokens=n) == (said(n), "length", n)


@pytest.mark.parametrize("more", range(9))
def test_the_end_of_the_context(llm: pyskip.Llama, more: int) -> None:
    prompt = "q" * more + "\n"
    n = N_CTX - len(llm.tokenize(prompt.encode()))
    for max_tokens in (None, 10_000):
        assert complete(llm, prompt, max_tokens=max_tokens) == (said(n), "length", n)
    messages = [{"role": "user", "content": prompt}]
    chat = llm.create_chat_completion(messages, temperature=0, max_tokens=None)
    assert chat["choices"][0]["finish_reason"] == "length"
    assert chat["usage"]["total_tokens"] == N_CTX


def test_what_is_held_back_for_a_stop_text(llm: pyskip.Llama) -> None:
    """Characters of several tokens among it."""
    assert complete(llm, "\n", max_tokens=8, stop=["é😀x"]) == (ROUND, "length", 8)
    assert complete(llm, "\n", max_tokens=20, stop=["é😀", "zz"]) == ("ab", "stop", 8)
    assert complete(llm, "\n", max_tokens=8, stop="😀") == ("abé", "stop", 8)


def test_the_next_generation_has_no_length(llm: pyskip.Llama) -> None:
    llm.create_completion("\n", max_tokens=3, temperature=0)
    llm.reset()
    tokens = [token for token, _ in zip(llm.generate(llm.tokenize(b"\n"), temp=0), range(12), strict=False)]
    assert len(tokens) == 12
    with pytest.raises(pyskip.DecodeError, match="exceed"):
        llm.create_completion("q" * N_CTX, max_tokens=2)
    llm.reset()
    assert sum(1 for _ in zip(llm.generate(llm.tokenize(b"\n"), temp=0), range(9), strict=False)) == 9


def test_text_before() -> None:
    assert text_before([], "é".encode()[:1]) == ("", False)
    assert text_before(["c", "b"], b"abc") == ("a", True)
    assert text_before([], b"\xff\xc3\xa9") == ("é", False)
    assert (stop_texts(None), stop_texts("a"), stop_texts(["", "b"])) == ([], ["a"], ["b"])


@pytest.fixture(scope="module")
def server(path: Path) -> Iterator[Running]:
    with running(str(path), "-c", "256", "--", "--parallel", "1") as server:
        yield server


@pytest.mark.loopback
@pytest.mark.parametrize("more", range(9))
def test_on_the_server(server: Running, more: int) -> None:
    """At the end of the context, and by its length."""
    for path, name, skips in (("/v1/completions", "max_tokens", "off"), ("/completion", "n_predict", "static:0")):
        for n in (-1, more + 1):
            body = {"prompt": "q" * more + "\n", name: n, "temperature": 0, "skip": skips}
            answer = server.post(path, body)
            assert answer.status_code == 200, answer.text
            whole = answer.json()
            text = whole["choices"][0]["text"] if "choices" in whole else whole["content"]
            n_said = n if n > 0 else len(text)
            assert text.rstrip("\ufffd").startswith(said(n_said)[:-1])
            assert (
                whole["choices"][0]["finish_reason"] == "length" if "choices" in whole else whole["truncated"] or n > 0
            )
            lines = server.post(path, {**body, "stream": True}).text
            assert "error" not in lines

"""States of pyskip.Llama: saved, restored into a context of another size, and those that do not fit."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kinds import make_kind

import pyskip

TOKENS = [1, 5, 6, 7, 8, 9]


def load(path: Path, n_ctx: int = 64, **kwargs: Any) -> Any:
    return closing(pyskip.Llama(path, n_ctx=n_ctx, n_threads=1, n_threads_batch=1, verbose=False, **kwargs))


def answer(llm: pyskip.Llama) -> list[int]:
    return [token for token, _ in zip(llm.generate(TOKENS, temp=0), range(8), strict=False)]


@pytest.mark.parametrize(("n_from", "n_to"), [(32, 128), (128, 32)])
def test_a_context_of_another_size(tiny: Path, n_from: int, n_to: int) -> None:
    with load(tiny, n_from) as one, load(tiny, n_to) as other:
        expected = answer(other)
        one.eval(TOKENS)
        other.load_state(one.save_state())
        assert (other.n_tokens, other.n_ctx()) == (len(TOKENS), n_to)
        assert answer(other) == expected
        other.eval([5] * (n_to - other.n_tokens))  # as far as its own context goes
        with pytest.raises(pyskip.DecodeError, match="do not fit"):
            other.eval([5])


def test_too_many_tokens(tiny: Path) -> None:
    with load(tiny, 128) as one, load(tiny, 64) as other:
        other.eval(TOKENS)
        one.eval([1] + [5] * 99)
        with pytest.raises(pyskip.DecodeError, match="100 tokens, the context holds 64: raise n_ctx"):
            other.load_state(one.save_state())
        assert other.n_tokens == len(TOKENS)


@pytest.mark.parametrize("fault", ["another model's", "cut off", "nothing"])
def test_what_does_not_fit(tiny: Path, tmp_path: Path, fault: str) -> None:
    """It leaves an empty cache, and not one of which it is said that the state's tokens are in it."""
    recurrent = make_kind(tmp_path / "recurrent.gguf", "recurrent")
    with load(tiny) as llm, load(recurrent if fault == "another model's" else tiny) as saving:
        expected = answer(llm)
        saving.eval(TOKENS)
        state = saving.save_state()
        if fault == "cut off":
            state.llama_state = state.llama_state[:100]
        with pytest.raises(pyskip.DecodeError, match=r"refuses the state \(|the state is a NoneType, expected"):
            llm.load_state(None if fault == "nothing" else state)
        assert fault == "nothing" or llm.n_tokens == 0
        assert answer(llm) == expected

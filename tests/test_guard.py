"""After close(), and from two threads at once: an error of pyskip's, where llama.cpp would crash or assert."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import pyskip  # isort: skip  (before llama_cpp)
import llama_cpp
from llama_cpp.llama_tokenizer import LlamaTokenizer

from pyskip.runtime.guard import ANY_TIME, DECODES

# What each public method is called with.
CALLS: dict[str, tuple[Any, ...]] = {
    "__call__": ("w1",),
    "check_grammar": (None,),
    "create_chat_completion": ([{"role": "user", "content": "w1"}],),
    "create_chat_completion_openai_v1": ([{"role": "user", "content": "w1"}],),
    "create_completion": ("w1",),
    "create_embedding": ("w1",),
    "deciding_by": (pyskip.Off(),),
    "detokenize": ([1],),
    "embed": ("w1",),
    "eval": ([1],),
    "generate": ([1],),
    "keep_pace": (None,),
    "load_state": (None,),
    "restore_sequence": ([1], None),
    "set_abort": (False,),
    "tokenize": (b"w1",),
}


@pytest.fixture
def small(tiny: Path) -> Iterator[pyskip.Llama]:
    with closing(pyskip.Llama(tiny, n_ctx=256, n_threads=1, n_threads_batch=1, verbose=False)) as llm:
        yield llm


def methods() -> list[str]:
    names = [name for name in dir(pyskip.Llama) if not name.startswith("_") or name == "__call__"]
    return [name for name in names if callable(getattr(pyskip.Llama, name)) and name not in ANY_TIME]


@pytest.mark.parametrize("name", methods())
def test_every_method_after_close(small: pyskip.Llama, name: str) -> None:
    small.close()
    with pytest.raises(pyskip.ModelLoadError, match="was closed"):
        getattr(small, name)(*CALLS.get(name, ()))


@pytest.mark.parametrize("name", ["ctx", "model", "engine", "skippable_layers"])
def test_every_property_after_close(small: pyskip.Llama, name: str) -> None:
    small.close()
    with pytest.raises(pyskip.ModelLoadError, match="was closed"):
        getattr(small, name)


def test_what_decodes_is_public() -> None:
    assert set(methods()) >= DECODES
    assert all(hasattr(pyskip.Llama, name) for name in ANY_TIME)


def test_policy_after_close(small: pyskip.Llama) -> None:
    small.close()
    small.close()
    with pytest.raises(pyskip.ModelLoadError, match="was closed"):
        small.skip = "static:1"


def test_streams_that_were_open(small: pyskip.Llama) -> None:
    generator = small.generate([1, 5], temp=0)
    stream = small.create_completion("w1 w2", max_tokens=20, temperature=0, stream=True)
    next(generator), next(stream)
    small.close()
    for open_one in (generator, stream):
        with pytest.raises(pyskip.ModelLoadError, match="was closed"):
            list(open_one)


def test_tokenizers_that_were_kept(small: pyskip.Llama) -> None:
    kept: list[Any] = [small.tokenizer(), small.tokenizer_, LlamaTokenizer(small)]
    assert kept[0].decode(kept[0].encode("w1", special=False)) == "w1"
    small.close()
    for tokenizer in kept:
        for name, given in (("encode", "w1"), ("decode", [1, 5]), ("tokenize", b"w1"), ("detokenize", [1, 5])):
            with pytest.raises(pyskip.ModelLoadError, match="was closed"):
                getattr(tokenizer, name)(given)


def test_close_in_a_callback(small: pyskip.Llama) -> None:
    """The call that calls back still has a model and a context; the next one has not."""
    calls: list[int] = []

    def close(_: Any, logits: Any) -> Any:
        calls.append(len(logits))
        small.close()
        assert small._ctx.n_ctx() == 256
        return logits

    small.eval([1, 5])
    assert 0 <= small.sample(logits_processor=llama_cpp.LogitsProcessorList([close])) < 320
    assert calls == [320]
    with pytest.raises(pyskip.ModelLoadError, match="was closed"):
        small.sample()
    with pytest.raises(pyskip.ModelLoadError, match="was closed"):
        small._ctx.n_ctx()


@pytest.mark.parametrize(
    ("where", "kind"),
    [("logits_processor", llama_cpp.LogitsProcessorList), ("stopping_criteria", llama_cpp.StoppingCriteriaList)],
)
def test_close_in_a_callback_of_a_completion(small: pyskip.Llama, where: str, kind: Any) -> None:
    def close(_: Any, logits: Any) -> Any:
        small.close()
        return logits if where == "logits_processor" else False

    with pytest.raises(pyskip.ModelLoadError, match="was closed"):
        small("w1", max_tokens=5, **{where: kind([close])})


def test_close_while_another_thread_tokenizes(small: pyskip.Llama) -> None:
    """Who has the vocabulary for as long as that takes."""
    text, found = b"w1 w22 abc" * 100_000, []
    expected = len(small.tokenize(text))
    begun = threading.Event()

    def run() -> None:
        begun.set()
        found.append(len(small.tokenize(text)))

    thread = threading.Thread(target=run)
    thread.start()
    begun.wait()
    time.sleep(0.02)
    small.close()
    thread.join()
    assert found == [expected]


class Slow:
    """Tokens of a Llama in a thread of its own."""

    def __init__(self, llm: pyskip.Llama) -> None:
        self.error: BaseException | None = None
        self.n = 0
        self._llm, self._stops = llm, False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        while not self.n and self._thread.is_alive():
            time.sleep(0.001)

    def _run(self) -> None:
        try:
            for _ in self._llm.generate([1, 5, 6], temp=0):
                self.n += 1
                if self._stops or self.n > 240:
                    return
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        self._stops = True
        self._thread.join(60)


@pytest.mark.parametrize("name", sorted(DECODES | {"create_completion", "generate"} - {"load_state", "keep_pace"}))
def test_second_thread(small: pyskip.Llama, name: str) -> None:
    first = Slow(small)
    try:
        with pytest.raises(pyskip.DecodeError, match="another thread"):
            next(iter(getattr(small, name)(*CALLS.get(name, ()))))
    finally:
        first.stop()
    assert first.error is None
    assert first.n > 0
    assert (
        small.create_completion("w1", max_tokens=2, temperature=0)["usage"]["completion_tokens"] > 0
    )  # it is free again


def test_policy_of_a_second_thread(small: pyskip.Llama) -> None:
    first = Slow(small)
    try:
        with pytest.raises(pyskip.DecodeError, match="another thread"):
            small.skip = "static:1"
        assert small.skip == pyskip.Off()
    finally:
        first.stop()
    assert first.error is None


def test_close_in_a_second_thread(small: pyskip.Llama) -> None:
    first = Slow(small)
    small.close()
    first.stop()
    assert isinstance(first.error, pyskip.ModelLoadError)


def test_one_stream_from_several_threads_in_turn(small: pyskip.Llama) -> None:
    """As web frameworks iterate: each step wherever a thread is free."""
    expected = [token for token, _ in zip(small.generate([1, 5], temp=0), range(6), strict=False)]
    small.reset()
    generator = small.generate([1, 5], temp=0)
    found: list[int] = []
    for _ in range(6):
        thread = threading.Thread(target=lambda: found.append(next(generator)))
        thread.start()
        thread.join()
    generator.close()
    assert found == expected


def test_what_a_thread_left_behind(small: pyskip.Llama) -> None:
    """A stream that was not closed holds nobody up once its thread is gone."""
    left: list[Any] = []

    def begin() -> None:
        left.append(small.generate([1, 5], temp=0))
        next(left[0])

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    assert next(small.generate([1, 6], temp=0)) >= 0

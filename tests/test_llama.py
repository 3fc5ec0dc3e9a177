"""pyskip.Llama is llama_cpp.Llama: everything still works, and the policy is where it should be and nowhere else."""

import gc
import pickle
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from llama_cpp.llama_grammar import LlamaGrammar
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

import pyskip

ALTERNATE = "cosine:threshold=-1,run=1,cold_start=1,cold_end=1,warmup=0"  # skips layers 2 and 4 of 6, whatever they say


def load(path: Path, **kwargs: Any) -> pyskip.Llama:
    kwargs = {"n_ctx": 256, "n_threads": 1, "n_threads_batch": 1, "verbose": False, **kwargs}
    return pyskip.Llama(path, **kwargs)


@pytest.fixture
def small(tiny: Path) -> Iterator[pyskip.Llama]:
    with closing(load(tiny, skip=ALTERNATE)) as llm:
        yield llm


def counted(llm: pyskip.Llama) -> tuple[int, int]:
    """(generated, prompt) tokens since the last look."""
    stats = llm.skip_stats()
    llm.reset_skip_stats()
    return stats.n_tokens, stats.n_prompt


def take(generator: Iterator[int], n: int) -> list[int]:
    return [next(generator) for _ in range(n)]


def test_is_a_llama(small: pyskip.Llama) -> None:
    assert isinstance(small, llama_cpp.Llama)
    assert small.skippable_layers == tuple(range(6))


def test_prompt_is_dense_and_the_rest_is_decided(small: pyskip.Llama) -> None:
    take(small.generate([1, 5, 6, 7], temp=0), 4)
    stats = small.skip_stats()
    assert (stats.n_prompt, stats.n_tokens) == (4, 3)  # the fourth was sampled, not decoded
    assert stats.prompt_skipped == (0,) * 6
    assert stats.skipped == (0, 0, 3, 0, 3, 0)
    assert stats.evaluated == (3, 3, 0, 3, 0, 3)
    assert stats.rate == pytest.approx(2 / 6)
    assert stats.per_layer == (0, 0, 1, 0, 1, 0)
    assert stats.skip == str(small.skip)


def test_prefix_cache(small: pyskip.Llama) -> None:
    first = take(small.generate([1, 5, 6, 7], temp=0), 3)
    assert counted(small) == (2, 4)
    take(small.generate([1, 5, 6, 7, *first, 9, 10], temp=0), 3)  # the next turn: the answer is prompt now
    assert counted(small) == (2, 3)
    take(small.generate([1, 5, 6, 7], temp=0), 3)  # a prompt that is there already: its last token again
    assert counted(small) == (2, 1)
    small.reset()
    small.eval([1, 5, 6, 7])
    assert counted(small) == (0, 4)
    take(small.generate([1, 5, 6, 7], temp=0), 3)  # its logits are there too
    assert counted(small) == (2, 0)


def test_without_reset(small: pyskip.Llama) -> None:
    small.eval([1, 5])
    counted(small)
    take(small.generate([6, 7], reset=False, temp=0), 3)
    assert counted(small) == (2, 2)


def test_a_generator_that_was_left(small: pyskip.Llama) -> None:
    """Its end, whenever it comes, says nothing of the next one."""
    left = small.generate([1, 5, 6], temp=0)
    take(left, 2)
    counted(small)
    following = small.generate([1, 9, 10, 11], temp=0)
    take(following, 1)
    left.close()
    take(following, 5)
    assert counted(small) == (5, 3)


def test_eval_while_a_generator_is_held(small: pyskip.Llama) -> None:
    held = small.generate([1, 5], temp=0)
    take(held, 2)
    small.reset()
    counted(small)
    small.eval([1, 5, 6, 7, 8])
    assert counted(small) == (0, 5)
    held.close()


def test_send_reaches_upstream(tiny: Path) -> None:
    with closing(
        load(tiny, skip=ALTERNATE, logits_all=True)
    ) as llm:  # upstream samples among the tokens that were sent
        generator = llm.generate([1, 5, 6], temp=0)
        next(generator)
        generator.send([9, 10])
        assert llm.n_tokens in (4, 6)  # the sampled one, and what was sent where it was what the model would say
        assert llm.skip_stats().n_prompt == 3
        generator.close()


def test_speculative_decoding(tiny: Path, small: pyskip.Llama) -> None:
    plain = small.create_completion("w1 w2 w1 w2 w1 w2", max_tokens=12, temperature=0)
    with closing(load(tiny, skip=ALTERNATE, draft_model=LlamaPromptLookupDecoding(num_pred_tokens=3))) as llm:
        drafted = llm.create_completion("w1 w2 w1 w2 w1 w2", max_tokens=12, temperature=0)
        assert drafted["choices"][0]["text"] == plain["choices"][0]["text"]
        stats = llm.skip_stats()
        assert stats.n_prompt == drafted["usage"]["prompt_tokens"]
        assert stats.n_tokens >= 11
        assert stats.prompt_skipped == (0,) * 6


def test_mark_generated(small: pyskip.Llama) -> None:
    small.eval([1, 5, 6])
    small.mark_generated()
    small.eval([7, 8])
    assert counted(small) == (2, 3)
    small.reset()
    small.eval([1, 5, 6])
    assert counted(small) == (0, 3)
    small.reset()
    small.mark_generated(1)
    small.eval([1, 5, 6])
    assert counted(small) == (2, 1)


@pytest.mark.parametrize("pos", [-1, 2**31, 2**40])
def test_a_bad_mark_changes_nothing(small: pyskip.Llama, pos: int) -> None:
    with pytest.raises(ValueError, match="pos"):
        small.mark_generated(pos)
    small.eval([1, 5])
    assert counted(small) == (0, 2)


def test_mark_does_not_reach_embeddings(tiny: Path) -> None:
    with closing(load(tiny, skip=ALTERNATE, embedding=True)) as llm, closing(load(tiny, embedding=True)) as dense:
        llm.mark_generated(0)
        np.testing.assert_array_equal(llm.embed("w1 w2 w3"), dense.embed("w1 w2 w3"))
        assert llm.skip_stats().n_tokens == 0


def test_skip_can_change(small: pyskip.Llama) -> None:
    generator = small.generate([1, 5, 6], temp=0)
    take(generator, 3)
    small.skip = "static:1"
    assert small.skip == pyskip.Static((1,))
    counted(small)
    take(generator, 2)
    assert small.skip_stats().skipped == (0, 2, 0, 0, 0, 0)
    small.skip = pyskip.Off()
    counted(small)
    take(generator, 2)
    assert counted(small) == (0, 0)  # off is not counted


@pytest.mark.parametrize("bad", ["static:6", "bogus", "0.5"])
def test_a_bad_policy_leaves_the_old_one(small: pyskip.Llama, bad: str) -> None:
    before = small.skip
    with pytest.raises(pyskip.PyskipError):
        small.skip = bad
    assert small.skip == before
    take(small.generate([1, 5], temp=0), 2)
    assert small.skip_stats().skipped == (0, 0, 1, 0, 1, 0)


def test_trace(small: pyskip.Llama) -> None:
    small.start_trace(100)
    take(small.generate([1, 5, 6], temp=0), 4)
    trace = small.take_trace()
    assert len(trace) == 3
    assert trace.positions.tolist() == [3, 4, 5]
    assert trace.skipped.tolist() == [[False, False, True, False, True, False]] * 3
    tested = ~np.isnan(trace.similarity)
    assert not (tested & trace.skipped).any()
    assert np.abs(trace.similarity[tested]).max() <= 1 + 1e-5
    assert len(small.take_trace()) == 0


def test_state(small: pyskip.Llama) -> None:
    take(small.generate([1, 5, 6, 7], temp=0), 3)
    state = small.save_state()
    small.eval([9])
    expected = take(small.generate([1, 5, 6, 7, 9, 10], temp=0), 4)
    small.reset()
    small.load_state(state)
    small.eval([9])
    assert take(small.generate([1, 5, 6, 7, 9, 10], temp=0), 4) == expected


def test_pickle(small: pyskip.Llama) -> None:
    expected = take(small.generate([1, 5, 6, 7], temp=0), 6)
    with closing(pickle.loads(pickle.dumps(small))) as copy:
        assert copy.skip == small.skip
        assert (copy.n_threads, copy.n_threads_batch) == (1, 1)
        assert take(copy.generate([1, 5, 6, 7], temp=0), 6) == expected


def test_completion_stream_chat_grammar_logprobs(tiny: Path) -> None:
    with closing(load(tiny, skip=ALTERNATE, logits_all=True)) as llm:
        kwargs: dict[str, Any] = {"max_tokens": 8, "temperature": 0}
        whole = llm.create_completion("w1 w2", **kwargs)["choices"][0]["text"]
        parts = [c["choices"][0]["text"] for c in llm.create_completion("w1 w2", stream=True, **kwargs)]
        assert "".join(parts) == whole
        grammar = LlamaGrammar.from_string('root ::= "w2 w3"', verbose=False)
        assert llm.create_completion("w1", grammar=grammar, **kwargs)["choices"][0]["text"] == "w2 w3"
        assert llm.create_completion("w1", logprobs=2, **kwargs)["choices"][0]["logprobs"] is not None
        chat = llm.create_chat_completion([{"role": "user", "content": "w1"}], **kwargs)
        assert chat["usage"]["completion_tokens"] > 0
        with pytest.raises(pyskip.DecodeError, match="fill-in-the-middle"):
            llm.create_completion("w7 w8", suffix="w9", **kwargs)


@pytest.mark.parametrize("text", ["root ::= (", "other ::= w", 'root ::= missing "w2"', 'root ::= "w2"\0'])
def test_grammar_that_cannot_be_read(small: pyskip.Llama, text: str) -> None:
    """llama.cpp has no sampler for it, which upstream adds to its chain all the same."""
    grammar = LlamaGrammar.from_string(text, verbose=False)
    for kwargs in ({}, {"stream": True}):
        with pytest.raises(pyskip.DecodeError, match="grammar, expected GBNF"):
            list(small.create_completion("w1", grammar=grammar, max_tokens=2, **kwargs))


def test_vocabulary_only(tiny: Path) -> None:
    with closing(load(tiny, vocab_only=True)) as llm:
        assert llm.detokenize(llm.tokenize(b"w1")) == b"w1"
        with pytest.raises(pyskip.DecodeError, match="vocab_only"):
            llm.eval([1])


def test_long_pieces(llm: pyskip.Llama) -> None:
    """llama-cpp-python drops what a token stands for when that is more than 32 bytes: deep indentation, say."""
    texts = [b"if x:\n" + b" " * 80 + b"pass", b"#" * 80, "日本語".encode()]
    for text in texts:
        assert llm.detokenize(llm.tokenize(text, add_bos=False)) == text
    assert max(len(llm.detokenize([t])) for t in llm.tokenize(texts[1], add_bos=False)) > 32


def test_threads_default_to_what_may_be_used(tiny: Path) -> None:
    from pyskip.system import physical_cores

    with closing(load(tiny, n_threads=None, n_threads_batch=None)) as llm:
        assert llm.n_threads == llm.n_threads_batch == physical_cores()


def test_abort(small: pyskip.Llama) -> None:
    small.set_abort(False)
    small.set_abort(True)
    with pytest.raises(pyskip.DecodeError):
        small.eval([1, 5, 6])
    small.set_abort(False)
    assert small.n_tokens == 0
    small.eval([1, 5, 6])
    assert small.n_tokens == 3


def test_nothing_is_leaked(tiny: Path) -> None:
    """A model that goes away takes its counters with it, and does not take those of the next one."""
    for _ in range(5):
        llm = load(tiny, skip=ALTERNATE)
        take(llm.generate([1, 5], temp=0), 3)
        assert counted(llm) == (2, 2)
        del llm
        gc.collect()

"""A model that drafts (draft_model=, --draft), or drafts for itself (lossless=): the text, what is skipped and what is
counted stay as without."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_profile, make_random

import pyskip

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

PROMPT = [1, *(5 + i % 7 for i in range(40))]
SKIPS = (
    "off",
    "static:1,3",
    "cosine:threshold=0.5,cold_start=1,cold_end=1,warmup=2",
    "0.4",
    "profile:rate=0.3,hold=0,warmup=2",
    "random:rate=0.5,warmup=0",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("draft") / "one.gguf"
    make_random.make(path, make_random.SHAPES["tiny"])
    make_profile.make_profile(path, path.with_name("one.skip.gguf"))
    make_random.make(path.with_name("wrong.gguf"), make_random.SHAPES["tiny"], seed=7)
    return path


def load(path: Path, **kwargs: Any) -> pyskip.Llama:
    """One whose results do not depend on how tokens are batched."""
    exact = {
        "n_ctx": 256,
        "n_threads": 1,
        "n_threads_batch": 1,
        "type_k": 0,
        "type_v": 0,
        "flash_attn": False,
        "kernels": "upstream",
    }
    return pyskip.Llama(path, verbose=False, **{**exact, **kwargs})


@pytest.fixture(scope="module")
def plain(model: Path) -> Iterator[pyskip.Llama]:
    with closing(load(model)) as llm:
        yield llm


@pytest.fixture(scope="module", params=["one", "wrong", "itself"])
def drafted(request: pytest.FixtureRequest, model: Path) -> Iterator[pyskip.Llama]:
    """By a draft that is right while nothing is skipped, by one that seldom is, and by the model itself."""
    draft = model.with_name(f"{request.param}.gguf")
    with closing(load(model, **({"draft_model": draft} if draft.exists() else {"lossless": "always"}))) as llm:
        yield llm


def said(llm: pyskip.Llama, skip: str, n: int = 60, **sampling: Any) -> tuple[Any, ...]:
    """Tokens of an answer, its trace, what was counted, and how many tokens are in the cache."""
    llm.reset()
    llm.engine.clear()
    llm.skip = skip
    llm.reset_skip_stats()
    llm.start_trace(256)
    llm.set_seed(3)
    generator = llm.generate(PROMPT, **{"temp": 0.0, **sampling})
    tokens = [token for token, _ in zip(generator, range(n), strict=False)]
    generator.close()
    trace = llm.take_trace(256)
    return tokens, trace.positions.tolist(), trace.skipped.tolist(), llm.skip_stats(), llm.n_tokens


@pytest.mark.parametrize("skip", SKIPS)
def test_a_draft_changes_nothing(plain: pyskip.Llama, drafted: pyskip.Llama, skip: str) -> None:
    for n in (60, 7):  # the second ends among tokens that were drafted
        assert said(drafted, skip, n) == said(plain, skip, n)
        assert 0 <= drafted.n_accepted <= drafted.n_drafted
        assert drafted.n_drafted > 0


def test_how_many_are_accepted(model: Path, plain: pyskip.Llama) -> None:
    with closing(load(model, draft_model=str(model))) as llm:
        said(llm, "off", 61)
        assert 44 <= llm.n_drafted <= 50  # three of four, where it is right
        assert 0.9 * llm.n_drafted <= llm.n_accepted <= llm.n_drafted


@pytest.mark.parametrize("sampling", [{}, {"repeat_penalty": 1.5, "dry_multiplier": 2.0}])
def test_sampled_alike(plain: pyskip.Llama, drafted: pyskip.Llama, sampling: dict[str, Any]) -> None:
    assert said(drafted, "static:1,3", temp=1.0, **sampling) == said(plain, "static:1,3", temp=1.0, **sampling)


def changed(llm: pyskip.Llama) -> tuple[Any, ...]:
    """A policy that changes every few tokens."""
    llm.reset()
    llm.engine.clear()
    llm.skip = "off"
    llm.reset_skip_stats()
    tokens = []
    for i, token in zip(range(40), llm.generate(PROMPT, temp=0), strict=False):
        tokens.append(token)
        if i % 5 == 0:
            llm.skip = SKIPS[i // 5 % len(SKIPS)]
    return tokens, llm.skip_stats()


def test_another_policy_in_mid_answer(plain: pyskip.Llama, drafted: pyskip.Llama) -> None:
    """Counts from the next token on, though others were drafted under the old one."""
    assert changed(drafted) == changed(plain)


def test_a_conversation_goes_on(plain: pyskip.Llama, drafted: pyskip.Llama) -> None:
    """What is in the cache after an answer is used by the next prompt, and is what it would be."""
    answers = []
    for llm in (plain, drafted):
        tokens = said(llm, "static:1,3", 18)[0]
        following = [*PROMPT, *tokens, 9, 10]
        answers.append([token for token, _ in zip(llm.generate(following, temp=0), range(20), strict=False)])
    assert answers[0] == answers[1]


def test_the_end_of_the_context(model: Path, plain: pyskip.Llama) -> None:
    """A draft's own is full three tokens before."""
    prompt = [5 + i % 7 for i in range(240)]
    texts = []
    for llm in (plain, load(model, draft_model=model), load(model, lossless="always")):
        llm.reset()
        llm.engine.clear()
        llm.skip = "off"
        texts.append([token for token, _ in zip(llm.generate(prompt, temp=0), range(16), strict=False)])
    assert texts[0] == texts[1] == texts[2]
    assert len(texts[0]) == 16


def test_a_batch_smaller_than_a_draft(model: Path, plain: pyskip.Llama) -> None:
    for draft in ({"draft_model": model}, {"lossless": "always"}):
        with closing(load(model, **draft, n_batch=2, n_ubatch=2)) as llm:
            assert said(llm, "static:1,3", 20)[0] == said(plain, "static:1,3", 20)[0]
            assert llm.n_drafted > 0


def test_what_cannot_draft(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    make_random.make(other, dataclasses.replace(make_random.SHAPES["tiny"], n_vocab=600))
    with pytest.raises(pyskip.ModelLoadError, match="another vocabulary"):
        load(model, draft_model=other)
    with pytest.raises(pyskip.ModelLoadError, match="none"):
        load(model, draft_model=tmp_path / "none.gguf")


def test_pickled_and_closed(model: Path) -> None:
    llm = load(model, draft_model=model, skip="static:2")
    copy = pickle.loads(pickle.dumps(llm))
    assert said(copy, "static:2", 8)[0] == said(llm, "static:2", 8)[0]
    assert copy.n_drafted > 0
    draft = llm.draft_model.llm
    for one in (llm, copy):
        one.close()
    with pytest.raises(pyskip.ModelLoadError, match="closed"):
        draft.eval([1])


def test_on_the_command_line(cli: Cli, model: Path) -> None:
    flags = ("-n", "20", "-t", "1", "-c", "128", "--temp", "0", "--kernels", "upstream", "--draft", str(model))
    document = json.loads(cli("generate", str(model), "-p", "w1 w2", "--skip", "off", "--json", *flags).stdout)
    assert document["n_drafted"] >= document["n_accepted"] > 0
    done = cli("chat", str(model), "-p", "w1 w2", "--skip", "off", *flags)
    assert done.returncode == 0, done.stderr
    missing = cli("chat", str(model), "-p", "w1", *flags[:-1], "none.gguf")
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1), missing.stderr
    assert "none.gguf" in missing.stderr


def test_one_draft_of_a_callers_own(model: Path, plain: pyskip.Llama) -> None:
    """llama-cpp-python's interface; what it proposes and is rejected does not count, either."""
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    with closing(load(model, draft_model=LlamaPromptLookupDecoding(num_pred_tokens=4))) as llm:
        *own, stats, n_tokens = said(llm, "static:1,3")
        *alone, expected, n_alone = said(plain, "static:1,3")
        assert (own, n_tokens) == (alone, n_alone)
        assert (stats.n_tokens, stats.evaluated, stats.skipped) == (60, expected.evaluated, expected.skipped)
        assert np.isfinite(llm.scores[: llm.n_tokens]).all()  # which upstream keeps with a draft

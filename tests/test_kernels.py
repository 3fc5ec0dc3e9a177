"""`kernels=`: pyskip's own, and llama.cpp's. What each computes is tested natively (native/tests/test-kernels)."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import make_random
import numpy as np
import pytest
from conftest import open_llm

import pyskip

# n_embd of 256: every type has whole blocks in a row
SHAPE = make_random.Shape(3, 256, 512, 4, 2, 384, 128, "f32")
TYPES = ("q4_0", "q4_1", "q8_0", "q4_k")
TOKENS = list(range(3, 67))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kernels")
    for kind in TYPES:
        make_random.make(folder / f"{kind}.gguf", SHAPE, kind=kind)
    return {kind: folder / f"{kind}.gguf" for kind in TYPES}


def logits(path: Path, kernels: str, steps: bool) -> np.ndarray:
    llm = open_llm(path, 128, kernels=kernels, logits_all=True)
    try:
        assert llm.kernels == kernels
        for tokens in [[token] for token in TOKENS] if steps else [TOKENS]:
            llm.eval(tokens)
        return np.array(llm.scores[: llm.n_tokens])
    finally:
        llm.close()


@pytest.mark.parametrize("steps", [False, True], ids=["batch", "steps"])
@pytest.mark.parametrize("kind", TYPES)
def test_fast_is_as_near_as_quantised_activations_are(models: dict[str, Path], kind: str, steps: bool) -> None:
    fast, upstream = (logits(models[kind], kernels, steps) for kernels in ("fast", "upstream"))
    error = float(((fast - upstream) ** 2).sum() / (upstream**2).sum())
    assert error < 2e-3


def test_the_choice_is_each_model_s_own(models: dict[str, Path]) -> None:
    """One that is loaded later for other kernels changes nothing for the first."""
    path = models["q4_k"]
    alone = logits(path, "upstream", steps=False)
    first = open_llm(path, 128, kernels="upstream", logits_all=True)
    second = open_llm(path, 128, kernels="fast", logits_all=True)
    try:
        for llm in (first, second):
            llm.eval(TOKENS)
        assert np.array_equal(first.scores[: first.n_tokens], alone)
    finally:
        first.close()
        second.close()


@pytest.mark.parametrize(("kernels", "asked", "found"), [("fast", None, 1), ("upstream", None, 0), ("fast", False, 0)])
def test_flash_attention_goes_with_them(models: dict[str, Path], kernels: str, asked: bool | None, found: int) -> None:
    llm = open_llm(models["q8_0"], 64, kernels=kernels, flash_attn=asked)
    try:
        assert llm.context_params.flash_attn_type == found
    finally:
        llm.close()


def test_a_pickle_keeps_it(models: dict[str, Path]) -> None:
    llm = pyskip.Llama(models["q8_0"], n_ctx=64, kernels="upstream", verbose=False)
    again = pickle.loads(pickle.dumps(llm))
    try:
        assert again.kernels == "upstream"
    finally:
        llm.close()
        again.close()


def test_in_low_memory(models: dict[str, Path]) -> None:
    """Weights stay in the file, whatever the kernels: the layout of the fast ones is a copy."""
    kept = []
    for kernels in ("fast", "upstream"):
        llm = open_llm(models["q4_k"], 128, kernels=kernels, flash_attn=False, low_memory=True, logits_all=True)
        llm.eval(TOKENS)
        kept.append(np.array(llm.scores[: llm.n_tokens]))
        llm.close()
    assert np.array_equal(kept[0], kept[1])


@pytest.mark.parametrize("kernels", ["quick", "", 1, None])
def test_others_are_refused(models: dict[str, Path], kernels: object) -> None:
    with pytest.raises(pyskip.ModelLoadError, match="expected 'fast' or 'upstream'"):
        pyskip.Llama(models["q8_0"], kernels=kernels, verbose=False)  # type: ignore[arg-type]


@pytest.mark.slow
def test_command_line(cli: Callable[..., CompletedProcess[str]], models: dict[str, Path]) -> None:
    ran = cli("generate", str(models["q8_0"]), "-p", "a", "-n", "4", "--kernels", "upstream")
    assert ran.returncode == 0, ran.stderr
    assert cli("generate", str(models["q8_0"]), "-p", "a", "--kernels", "quick").returncode == 2

"""Arguments that nobody knows, and those for hardware that is not used: an error, a warning, and never silence."""

from __future__ import annotations

import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import pyskip
from pyskip.runtime.arguments import OTHER_NAMES, TAKEN


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("skp", "skip"),
        ("cache_type_k", "type_k"),
        ("nthreads", "n_threads"),
        ("low_mem", "low_memory"),
        ("temperature", "temperature of the call that generates"),
        ("num_ctx", "n_ctx"),
    ],
)
def test_unknown_keyword(tiny: Path, name: str, near: str) -> None:
    argument: dict[str, Any] = {name: 1}
    with pytest.raises(TypeError, match=f"no argument '{name}': did you mean {near}"):
        pyskip.Llama(tiny, verbose=False, **argument)


def test_a_keyword_like_no_other(tiny: Path) -> None:
    with pytest.raises(TypeError, match="no argument 'qqqqqqqq', expected one of"):
        pyskip.Llama(tiny, verbose=False, qqqqqqqq=1)  # type: ignore[call-arg, unused-ignore]


def test_other_names_lead_somewhere() -> None:
    known = TAKEN | {"max_tokens", "mmproj", "temperature", "top_k", "top_p"}
    assert {hint.split()[0] for hint in OTHER_NAMES.values()} <= known
    assert not OTHER_NAMES.keys() & TAKEN


@pytest.mark.parametrize("argument", [{"n_gpu_layers": 99}, {"n_gpu_layers": -1}, {"main_gpu": 1}, {"split_mode": 2}])
def test_gpu(tiny: Path, argument: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match=f"{next(iter(argument))}: pyskip decodes on the CPU") as caught:
        pyskip.Llama(tiny, verbose=False, **argument).close()
    assert caught[0].filename == __file__


def test_what_asks_for_no_gpu(tiny: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        closing(pyskip.Llama(tiny, verbose=False, n_gpu_layers=0, main_gpu=0, tensor_split=None))


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ({"n_threads": 513}, "1 to 512"),
        ({"n_threads_batch": 10**6}, "1 to 512"),
        ({"n_threads": -1}, "1 to 512"),
        ({"pooling_type": 99}, r"llama_cpp\.LLAMA_POOLING_TYPE_"),
        ({"rope_scaling_type": 99}, r"llama_cpp\.LLAMA_ROPE_SCALING_TYPE_"),
        ({"attention_type": 9}, r"llama_cpp\.LLAMA_ATTENTION_TYPE_"),
        ({"numa": "x"}, r"llama_cpp\.GGML_NUMA_STRATEGY_"),
    ],
)
def test_values_that_do_not_exist(tiny: Path, argument: dict[str, Any], expected: str) -> None:
    (name,) = argument
    with pytest.raises(pyskip.ModelLoadError, match=f"^{name} is .*{expected}"):
        pyskip.Llama(tiny, verbose=False, **argument)


@pytest.mark.parametrize(
    "argument", [{"pooling_type": 0}, {"rope_scaling_type": -1}, {"attention_type": 0}, {"numa": False}]
)
def test_values_that_exist(tiny: Path, argument: dict[str, Any]) -> None:
    with closing(pyskip.Llama(tiny, n_ctx=32, n_threads=1, verbose=False, **argument)) as llm:
        assert llm.n_ctx() > 0

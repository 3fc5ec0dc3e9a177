"""Flags of sampling, and what a model's file recommends."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from conftest import make_random

import pyskip
from pyskip.cli.options import Options
from pyskip.runtime.generation import Generation, chat_tokens
from pyskip.runtime.sampling import Sampling, for_chat, recommended

Cli = Callable[..., subprocess.CompletedProcess[str]]
FILE = {"general.sampling.temp": "0.6", "general.sampling.top_k": "20", "general.sampling.penalty_repeat": "1.1"}


def test_recommended() -> None:
    assert recommended(FILE) == {"temp": 0.6, "top_k": 20, "repeat_penalty": 1.1}
    assert recommended({"general.sampling.temp": "hot", "general.sampling.top_p": "nan"}) == {}
    assert recommended({}) == {}


def test_flags_go_before_what_is_recommended() -> None:
    options = Options(top_k=5, min_p=0.0)
    assert options.sampling(recommended(FILE)) == Sampling(temp=0.6, top_k=5, min_p=0.0, repeat_penalty=1.1)
    assert Options().sampling({}) == Sampling()


def test_a_chat_samples_as_upstreams_where_the_file_says_nothing() -> None:
    assert Options().sampling(for_chat({})) == Sampling(temp=0.8, top_k=40, top_p=0.95, min_p=0.05, repeat_penalty=1.0)
    assert Options().sampling(for_chat(FILE)).temp == 0.6
    assert Options(temp=0.0).sampling(for_chat({})).temp == 0.0


def test_what_samplers_do(tiny_llm: pyskip.Llama) -> None:
    def text(**kwargs: float) -> list[int]:
        tiny_llm.reset()
        generation = Generation(tiny_llm, [5, 6], max_tokens=40, seed=1, sampling=Sampling(**kwargs))  # type: ignore[arg-type]
        list(generation)
        return list(generation.answer().tokens)

    greedy = text()
    assert text(temp=1.5, top_k=1) == greedy
    assert text(temp=1.5, top_k=0, top_p=1.0, min_p=1.0) == greedy
    assert text(temp=1.5, top_k=0, top_p=1.0, min_p=0.0) != greedy
    repeated = len(greedy) - len(set(greedy))
    assert repeated > 0
    unlike = text(presence_penalty=50.0)
    assert len(unlike) - len(set(unlike)) < repeated


def test_dry(tiny_llm: pyskip.Llama) -> None:
    """What went on with a repetition before is not said again; prompts count, and so do processors before it."""

    def favour(_tokens: Any, scores: Any) -> Any:
        scores = np.copy(scores)
        scores[9] += 50.0
        return scores

    def first(**dry: Any) -> int:
        tiny_llm.reset()
        return next(tiny_llm.generate([5, 6, 9, 7, 5, 6], temp=0, logits_processor=[favour], **dry))

    assert first() == 9
    assert first(dry_multiplier=100.0) != 9
    assert first(dry_multiplier=10.0, dry_base=20.0, dry_allowed_length=1) != 9
    assert first(dry_multiplier=10.0, dry_base=20.0) == 9
    assert first(dry_multiplier=100.0, dry_allowed_length=3) == 9
    assert first(dry_multiplier=100.0, dry_penalty_last_n=3) == 9
    assert first(dry_multiplier=100.0, dry_penalty_last_n=0) == 9
    assert first(dry_multiplier=100.0, dry_penalty_last_n=2**31 - 1) != 9
    assert first() == 9  # a sampler of its own for each generation
    sampled = tiny_llm.sample(temp=0)
    assert sampled == tiny_llm.sample(temp=0)


@pytest.mark.parametrize("bad", [{"dry_multiplier": -1}, {"dry_base": float("nan")}, {"dry_allowed_length": 1.5}])
def test_dry_out_of_range(tiny_llm: pyskip.Llama, bad: dict[str, Any]) -> None:
    with pytest.raises(pyskip.DecodeError, match=f"{next(iter(bad))} is .*expected a"):
        next(tiny_llm.generate([5, 6], **bad))


def test_dry_on_the_command_line(cli: Cli, tiny: Path) -> None:
    def text(*flags: str) -> str:
        done = cli("generate", str(tiny), "-p", "w1 w2", "-n", "40", "-t", "1", "--skip", "off", *flags)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert text("--dry-multiplier", "0") == text()
    assert text("--dry-multiplier", "50", "--dry-allowed-length", "1", "--dry-base", "2") != text()
    assert text("--dry-multiplier", "50", "--dry-penalty-last-n", "0") == text()
    assert cli("generate", str(tiny), "-p", "w1", "--dry-base", "0.5").returncode == 2


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose file recommends a temperature, and whose template has a choice of reasoning."""
    template = "{% if enable_thinking is defined and not enable_thinking %}quiet {% endif %}{{ messages[-1].content }}"

    def add(writer: gguf.GGUFWriter, _: str) -> None:
        writer.add_key_value("tokenizer.chat_template", template, gguf.GGUFValueType.STRING)
        writer.add_float32("general.sampling.temp", 50.0)

    monkeypatch.setattr("gguf.GGUFWriter.add_chat_template", add)
    path = tmp_path / "told.gguf"
    make_random.make(path, make_random.SHAPES["tiny"])
    return path


def test_chat_samples_as_the_file_recommends(cli: Cli, told: Path) -> None:
    def said(*flags: str) -> str:
        done = cli("chat", str(told), "-p", "w1 w2", "-n", "12", "-t", "1", *flags)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert said("--seed", "1") != said("--seed", "2")
    assert said("--seed", "1", "--temp", "0") == said("--seed", "2", "--temp", "0")
    engine = ("--flash-attn", "on", "--cache-type-k", "f32", "--cache-type-v", "f32")
    assert said("--temp", "0", *engine).strip()
    done = cli("chat", str(told), "-p", "w1", "--lora", "none.gguf")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "none.gguf" in done.stderr


def test_a_chat_is_never_the_same_unless_told(cli: Cli, tiny: Path) -> None:
    """From a pipe, too; generate takes the likeliest tokens."""

    def said(*flags: str) -> str:
        done = cli("chat", str(tiny), "-n", "16", "-t", "1", *flags, input="w1 w2\n")
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert len({said() for _ in range(3)}) > 1
    assert said("--seed", "1") == said("--seed", "1") == said("--seed", "1", "--temp", "0.8") != said("--seed", "2")
    assert said("--temp", "0") == said("--temp", "0", "--seed", "2")
    written = {cli("generate", str(tiny), "-p", "w1", "-n", "16", "-t", "1").stdout for _ in range(2)}
    assert len(written) == 1


def test_prompt_from_stdin(cli: Cli, told: Path) -> None:
    flags = ("-n", "5", "-t", "1", "--temp", "0")
    whole = cli("chat", str(told), "-p", "-", *flags, input="w1\nw2\n")
    assert whole.returncode == 0, whole.stderr
    assert whole.stderr.count("1 answers") == 1
    empty = cli("chat", str(told), "-p", "-", *flags, input=" \n")
    assert (empty.returncode, empty.stdout) == (2, "")


def test_reasoning(told: Path) -> None:
    llm = pyskip.Llama(told, n_ctx=64, n_threads=1, verbose=False)
    prompts = {
        thinks: llm.detokenize(chat_tokens(llm, [{"role": "user", "content": "w1"}], thinks=thinks)).decode()
        for thinks in (None, True, False)
    }
    llm.close()
    assert prompts[None] == prompts[True]
    assert "quiet" in prompts[False]
    assert "quiet" not in prompts[True]

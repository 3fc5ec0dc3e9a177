"""Flags of sampling, and what a model's file recommends."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from conftest import make_random

import pyskip
from pyskip.cli.options import Options
from pyskip.runtime.generation import Generation, chat_tokens
from pyskip.runtime.sampling import Sampling, recommended

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

"""Texts that recursion in C goes as deep into as they are long: std::regex, which some vocabularies are split by."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from vocabulary import make_vocabulary, sdist_vocabularies

import pyskip

Cli = Callable[..., subprocess.CompletedProcess[str]]

RULES = ["deepseek-llm", "falcon", "gpt-4o", "tekken", "viking", "chameleon", "bloom", "smollm", "llama-bpe", "qwen2"]
OVER = """
import ctypes, sys, threading
from pyskip.binding.crash import exit_on_crash
from pyskip.binding.library import lib
def overrun():
    lib.pyskip_set_generated_from(ctx, 0, -1) if ctx else None
    ctypes.CDLL(None).regcomp(ctypes.create_string_buffer(4096), b"(" * 4_000_000, 1)
ctx = None
exit_on_crash(2)
if sys.argv[1] == "thread":
    import pyskip
    llm = pyskip.Llama(sys.argv[2], n_ctx=64, n_threads=1, verbose=False)
    ctx = llm.engine.skip.native
    thread = threading.Thread(target=overrun)
    thread.start()
    thread.join()
else:
    overrun()
"""


@pytest.mark.parametrize("rules", RULES)
def test_equal_characters(tmp_path: Path, rules: str) -> None:
    path = make_vocabulary(tmp_path / "v.gguf", rules)
    with closing(pyskip.Llama(path, vocab_only=True, verbose=False)) as llm:
        for letter in ("a", " ", "1", "!", "é", "aA", "\n"):
            text = (letter * 60_000).encode()
            assert llm.detokenize(llm.tokenize(text, add_bos=False)) == text


@pytest.mark.slow
def test_a_megabyte_under_every_vocabulary(tmp_path: Path) -> None:
    """Of the sdist's. BERT's drop blanks and accents."""
    paths = sdist_vocabularies(tmp_path)
    assert len(paths) > 15
    for path in paths:
        with closing(pyskip.Llama(path, vocab_only=True, verbose=False)) as llm:
            for letter in ("a", "1", " ", "\n", "中", "\u0301", "!", "\U0001f600"):
                text = (letter * (1_000_000 // len(letter.encode()))).encode()
                assert llm.tokenize(text, add_bos=False) or "bert" in path.name, path.name


def test_long_text_is_as_several(tmp_path: Path) -> None:
    """What is split on another stack is split alike."""
    words = " ".join(f"w{i} aa" for i in range(900)).encode()
    path = make_vocabulary(tmp_path / "v.gguf", "gpt-4o")
    with closing(pyskip.Llama(path, vocab_only=True, verbose=False)) as llm:
        pieces = [llm.tokenize(b" " + word, add_bos=False) for word in words.split(b" ")]
        assert llm.tokenize(b" " + words, add_bos=False) == [token for piece in pieces for token in piece]


@pytest.mark.parametrize("where", ["main", "thread"])
def test_a_stack_that_ran_over(tiny: Path, where: str) -> None:
    """The handler needs a stack of its own to say so."""
    done = subprocess.run([sys.executable, "-c", OVER, where, str(tiny)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("pyskip: llama.cpp crashed (SIGSEGV)")
    assert done.stderr.count("\n") == 1

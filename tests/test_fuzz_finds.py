"""What fuzzing found, each as small as it gets: an error of one line now, and a crash or a page of text before."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import gguf
import pytest

import pyskip
from pyskip.policy import parse_skip

Cli = Callable[..., subprocess.CompletedProcess[str]]


def edited(model: Path, folder: Path, old: bytes, new: bytes) -> Path:
    whole = model.read_bytes()
    assert whole.count(old) >= 1
    path = folder / "edited.gguf"
    path.write_bytes(whole.replace(old, new))
    return path


# What llama.cpp stops the process for while it loads

ABORTS = {"two tokens of one text": ("▁w12".encode(), "▁w13".encode(), "token_to_id")}


@pytest.mark.parametrize("kind", ABORTS)
def test_what_llama_cpp_aborts_on(cli: Cli, tiny: Path, tmp_path: Path, kind: str) -> None:
    old, new, said = ABORTS[kind]
    path = edited(tiny, tmp_path, old, new)
    with pytest.raises(pyskip.ModelLoadError, match=said) as caught:
        pyskip.Llama(path, verbose=False)
    assert "\n" not in str(caught.value)
    for command in (["generate", str(path), "-p", "x"], ["info", str(path)]):
        done = cli(*command)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1, done.stderr
        assert said in done.stderr
    pyskip.Llama(tiny, verbose=False).close()  # and the process goes on


def test_a_vocabulary_without_a_byte(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    """llama_tokenize() throws, which no ctypes call survives."""
    path = edited(tiny, tmp_path, b"<0x41>", b"<9x41>")
    with closing(pyskip.Llama(path, verbose=False)) as llm:
        assert llm.tokenize(b"B", add_bos=False)
        with pytest.raises(pyskip.DecodeError, match="cannot split this text into tokens"):
            llm.tokenize(b"A")
    done = cli("generate", str(path), "-p", "A", "-n", "1")
    assert done.returncode == 1
    assert "cannot split this text into tokens" in done.stderr


@pytest.mark.parametrize(
    ("crash", "said"),
    [
        ("ctypes.string_at(8)", "SIGSEGV"),
        ("ggml.ggml_new_tensor(None, 0, 9, None)", "llama.cpp stopped ("),
        ("os.kill(os.getpid(), signal.SIGFPE)", "SIGFPE"),
    ],
)
def test_a_crash_is_one_line_at_the_command_line(crash: str, said: str) -> None:
    code = (
        "import ctypes, os, signal\n"
        "from pyskip.binding.library import LIB_DIR\nfrom pyskip.binding.crash import exit_on_crash\n"
        f"ggml = ctypes.CDLL(str(LIB_DIR / 'libggml-base.so')); exit_on_crash(2); {crash}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert said in done.stderr


def test_a_crash_is_left_to_the_debugger_when_asked(tiny: Path) -> None:
    """PYSKIP_DEBUG."""
    code = "import os, signal, sys; from pyskip.cli import main; main._crash_in_one_line(); os.kill(os.getpid(), 11)"
    env = {**os.environ, "PYSKIP_DEBUG": "1"}
    assert subprocess.run([sys.executable, "-c", code], env=env, timeout=60).returncode == -11


# What llama.cpp takes on trust, and crashes or aborts on in the first decode

LAST = b"blk.5.ffn_down.weight" + struct.pack("<IQQ", 2, 128, 64)
EPSILON = b"llama.attention.layer_norm_rms_epsilon" + struct.pack("<I", 6)
TRUSTED = {
    "weights of integers": (LAST + struct.pack("<I", 0), LAST + struct.pack("<I", 24), "ffn_down.weight is i8"),
    "epsilon below 0": (EPSILON + struct.pack("<f", 1e-5), EPSILON + struct.pack("<f", -1.0), "epsilon is -1.0"),
    "epsilon that is no number": (EPSILON + struct.pack("<f", 1e-5), EPSILON + b"\xff" * 4, "epsilon is -nan"),
}


@pytest.mark.parametrize("kind", TRUSTED)
def test_what_llama_cpp_takes_on_trust(tiny: Path, tmp_path: Path, kind: str) -> None:
    old, new, said = TRUSTED[kind]
    with pytest.raises(pyskip.ModelLoadError, match=said):
        pyskip.Llama(edited(tiny, tmp_path, old, new), verbose=False)


# Sizes whose sums and products do not fit into 64 bits


def test_a_tensor_of_2_to_the_63_bytes(tiny: Path, tmp_path: Path) -> None:
    path = edited(tiny, tmp_path, LAST, LAST[:-8] + struct.pack("<Q", 2**54))
    with pytest.raises(pyskip.ModelLoadError, match=f"blk.5.ffn_down.weight has {2**63} bytes"):
        pyskip.inspect(path)


def test_heads_without_end(tiny: Path, tmp_path: Path) -> None:
    path = tiny
    for key in (b"llama.attention.head_count_kv", b"llama.embedding_length"):
        whole = path.read_bytes()
        at = whole.index(key) + len(key)
        path = edited(path, tmp_path, whole[at - len(key) : at + 8], key + struct.pack("<II", 4, 2**32 - 1))
    assert pyskip.inspect(path).kv_bytes_per_token >= 0


def test_logits_that_are_not_finite(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    """A page of numpy's warnings, and a table whose rows were of two lengths."""
    path, text = tmp_path / "m.gguf", tmp_path / "text"
    path.write_bytes(tiny.read_bytes())
    text.write_text("w5 w6 w7 " * 20)
    norm = next(t for t in gguf.GGUFReader(path, "r+").tensors if t.name == "output_norm.weight")
    norm.data[:] = 3e38
    done = cli("eval", str(path), "--text", str(text), "-c", "16", "-t", "1", "--skip", "static:1")
    assert done.returncode == 1
    assert done.stderr.startswith("pyskip: logits are not finite")
    assert done.stderr.count("\n") == 1


def test_a_model_that_outlives_the_modules(tiny: Path) -> None:
    """llama.cpp logs when it is freed, at the very end of the interpreter too."""
    code = "import pyskip, sys; sys.kept = pyskip.Llama(sys.argv[1], verbose=False); sys.kept.eval([1])"
    done = subprocess.run([sys.executable, "-c", code, str(tiny)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stderr == ""


# Skip specifications


@pytest.mark.parametrize(
    "spec",
    ["cosine:run=" + "0" * 5000, "static:" + "9" * 5000, "cosine:" + "x" * 5000, "profile:prefill=" + "1" * 5000],
)
def test_a_long_specification_is_not_repeated_whole(spec: str) -> None:
    with pytest.raises(pyskip.PolicyError) as caught:
        parse_skip(spec)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("skip", [10**5000, -(10**400), 1e308, float("nan")], ids=["long", "low", "high", "nan"])
def test_numbers_that_are_no_rate(skip: float) -> None:
    with pytest.raises(pyskip.PolicyError, match="expected off, a rate"):
        parse_skip(skip)


# What sequences of calls ended the process with


def test_sampling_where_no_logits_are(tiny: Path) -> None:
    """As a stream does that was left, when its turn comes after other calls."""
    with closing(pyskip.Llama(tiny, n_ctx=64, n_threads=1, verbose=False)) as llm:
        with pytest.raises(pyskip.DecodeError, match="no logits"):
            llm.sample()
        llm.eval([1, 5, 6])
        assert llm.sample(temp=0) == llm.sample(temp=0, idx=2)
        with pytest.raises(pyskip.DecodeError, match="no logits"):
            llm.sample(idx=0)
        llm.reset()
        with pytest.raises(pyskip.DecodeError, match="no logits"):
            llm.sample()

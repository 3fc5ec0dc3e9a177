"""Files that are no projector, or a damaged one: refused in a line before libmtmd sees what it would crash on."""

from __future__ import annotations

import random
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import make_projector, open_llm

import pyskip

pytestmark = pytest.mark.slow  # needs libmtmd, which `make test` builds


def test_what_is_no_projector(tiny: Path, eyes: Path, tmp_path: Path) -> None:
    def refused(mmproj: Any, match: str, **more: Any) -> None:
        with pytest.raises(pyskip.ModelLoadError, match=match) as caught:
            open_llm(tiny, 64, mmproj=mmproj, **more)
        assert "\n" not in str(caught.value)

    refused(tmp_path / "none", "no such file, expected the model's projector")
    refused(tiny, "a model of architecture 'llama', expected a projector")
    refused(make_projector.make(tmp_path / "wide.gguf", 96), r"mismatch between text model \(n_embd = 64\)")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(eyes.read_bytes()[:-1000])
    refused(cut, "cut.gguf")
    cut.write_bytes(b"GGUF")
    refused(cut, "cut.gguf")
    data = eyes.read_bytes()
    cut.write_bytes(data.replace(b"v.patch_embd.weight", b"v.patch_emxd.weight"))
    refused(cut, r"no v\.patch_embd\.weight, expected both")
    refused(eyes, "mmproj and vocab_only were both given", vocab_only=True)
    refused(eyes, "mmproj and chat_handler were both given", chat_handler=print)


def test_loading_damaged_projectors(tiny: Path, eyes_and_ears: Path, tmp_path: Path) -> None:
    """A byte of the head is another: it loads, or is refused in a line. In a process of its own, should it crash."""
    code = (
        "import sys, pyskip\n"
        "for name in sys.argv[2:]:\n"
        "    try:\n"
        "        pyskip.Llama(sys.argv[1], mmproj=name, n_ctx=64, verbose=False).close()\n"
        "    except pyskip.PyskipError as error:\n"
        "        assert '\\n' not in str(error)\n"
    )
    rng, names = random.Random(1), []
    data = eyes_and_ears.read_bytes()
    end = data.index(b"mm.a.mlp.2.weight")  # the head
    for i in range(40):
        changed = bytearray(data)
        changed[rng.randrange(24, end)] = rng.randrange(256)
        names.append(tmp_path / f"{i}.gguf")
        names[-1].write_bytes(changed)
    done = subprocess.run([sys.executable, "-c", code, str(tiny), *map(str, names)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


Damage = Callable[[bytes], bytes]


def renamed(name: str) -> Damage:
    """A tensor's last letter is another."""
    return lambda data: data.replace(name.encode(), name.encode()[:-1] + b"X")


def valued(key: str, kind: str, value: float) -> Damage:
    """Another value, of four bytes, for a key, behind its type."""

    def change(data: bytes) -> bytes:
        at = data.index(key.encode()) + len(key) + 4
        return data[:at] + struct.pack(kind, value) + data[at + 4 :]

    return change


PARTS = ("attn_q.weight", "attn_k.weight", "attn_v.bias", "ln1.bias", "ffn_up.bias", "ffn_down.weight")
DAMAGES: dict[str, tuple[Damage, str]] = {
    **{
        f"{name}.{part}": (
            renamed(f"{name}.blk.1.{part}"), rf"{name}\.blk\.\*\.{part} is in 2 layers, expected all 3"
        )
        for name in "va" for part in PARTS
    },
    "positions of images": (renamed("v.position_embd.weight"), r"of kind mlp without v\.position_embd\.weight,"),
    "positions of audio": (renamed("a.position_embd.weight"), r"kind ultravox without a\.position_embd\.weight,"),
    "pair": (renamed("mm.2.weight"), "there is a mm.2.bias and no weight, expected both"),
    "heads": (valued("clip.vision.attention.head_count", "<I", 0), "head_count is 0, expected"),
    "many heads": (valued("clip.audio.attention.head_count", "<I", 2**31), "head_count is 2147483648, expected"),
    "patch": (valued("clip.vision.patch_size", "<I", 0), "patch_size is 0, expected"),
    "stack": (valued("clip.audio.projector.stack_factor", "<I", 0), "stack_factor is 0, expected"),
    "norm": (valued("clip.vision.attention.layer_norm_epsilon", "<f", float("nan")), "epsilon is .*nan, expected"),
    "cut": (lambda data: data[:-5000], "is cut off"),
    "head": (lambda data: data[:300], "GGUF header that llama.cpp cannot read"),
}  # fmt: skip


def test_what_libmtmd_would_crash_on(tiny: Path, eyes_and_ears: Path, tmp_path: Path) -> None:
    """Refused by name before it sees the file, by the library and by the server; in a process of its own."""
    code = (
        "import sys, pyskip\n"
        "for name in sys.argv[2:]:\n"
        "    try:\n"
        "        llm = pyskip.Llama(sys.argv[1], mmproj=name, n_ctx=512, verbose=False)\n"
        "        print('no error')\n"
        "        llm.close()\n"
        "    except pyskip.ModelLoadError as error:\n"
        "        print(str(error).replace('\\n', '<newline>'))\n"
    )
    data, names = eyes_and_ears.read_bytes(), []
    for i, (damage, _) in enumerate(DAMAGES.values()):
        names.append(tmp_path / f"{i}.gguf")
        names[-1].write_bytes(damage(data))
        assert names[-1].read_bytes() != data
    done = subprocess.run([sys.executable, "-c", code, str(tiny), *map(str, names)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    for line, (name, (_, expected)) in zip(lines, DAMAGES.items(), strict=True):
        assert re.search(expected, line), f"{name}: {line}"
        assert "<newline>" not in line


@pytest.mark.loopback
def test_a_server_refuses_a_damaged_projector(
    cli: Callable[..., subprocess.CompletedProcess[str]], tiny: Path, eyes_and_ears: Path, tmp_path: Path
) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(DAMAGES["v.attn_k.weight"][0](eyes_and_ears.read_bytes()))
    done = cli("serve", str(tiny), "--port", "0", "--skip", "off", "--", "--mmproj", str(path))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "damaged.gguf: v.blk.*.attn_k.weight is in 2 layers" in done.stderr

"""Models larger than memory: what is skipped is never read from the file, and nothing else changes."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
from pathlib import Path
from typing import Any

import gguf
import make_random
import numpy as np
import numpy.typing as npt
import pytest
from serving import running

import pyskip

libc = ctypes.CDLL(None, use_errno=True)
PROFILE = "random:rate=0.3,seed=1,warmup=0"
MADV_DONTNEED = 4  # mmap.MADV_DONTNEED, which not every platform's module has


def mappings(path: Path) -> list[tuple[int, int, int]]:
    """Where this process has the file, pieces of different advice apart: address, length, offset."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(path)):
            span, _, offset, *_ = line.split()
            begin, end = (int(part, 16) for part in span.split("-"))
            found.append((begin, end - begin, int(offset, 16)))
    assert found
    return found


def resident(path: Path) -> np.ndarray:
    """Which pages of the file are in memory; those that are not mapped count as absent."""
    flags = np.zeros(-(-path.stat().st_size // mmap.PAGESIZE), np.uint8)
    for address, length, offset in mappings(path):
        piece = flags[offset // mmap.PAGESIZE :][: -(-length // mmap.PAGESIZE)]
        assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(length), ctypes.c_void_p(piece.ctypes.data)) == 0
    return flags & 1


def evict(path: Path) -> None:
    """The file's pages out of memory."""
    for address, length, _ in mappings(path):
        assert libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), MADV_DONTNEED) == 0
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    if resident(path).any():
        pytest.skip("the file system of the test's folder keeps its files in memory")


def pages(path: Path, name: str) -> slice:
    """Those that hold nothing but the tensor."""
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == name)
    begin = int(tensor.data_offset)
    return slice(-(-begin // mmap.PAGESIZE), (begin + int(tensor.n_bytes)) // mmap.PAGESIZE)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_skipped_blocks_are_never_read(tiny: Path) -> None:
    llm = pyskip.Llama(tiny, skip="static:1,4", low_memory=True, n_ctx=64, n_threads=2, verbose=False)
    llm.eval([5])  # builds the graph, with the advice
    evict(tiny)
    llm.eval([6])
    seen = resident(tiny)
    for il in range(6):
        for part in ("gate", "up", "down"):
            of_tensor = seen[pages(tiny, f"blk.{il}.ffn_{part}.weight")]
            assert len(of_tensor) > 5
            assert of_tensor.any() != (il in (1, 4)), (il, part)
            assert of_tensor.all() == of_tensor.any()
    llm.close()


def read_alone(path: Path, process: int | str = "self") -> bool:
    """Whether any page of the file is marked MADV_RANDOM."""
    flags, ours = [], False
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        if line.split()[0].count("-") == 1 and not line.split()[0].endswith(":"):
            ours = line.endswith(str(path))
        elif ours and line.startswith("VmFlags:"):
            flags += line.split()[1:]
    assert flags
    return "rr" in flags


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs /proc")
def test_off_after_a_policy_is_llama_cpp_s_own(tiny: Path) -> None:
    llm = pyskip.Llama(tiny, skip="static:1,4", low_memory=True, n_ctx=64, n_threads=2, verbose=False)
    llm.eval([5])
    assert read_alone(tiny)
    llm.skip = "off"
    llm.eval([6])
    assert not read_alone(tiny)
    llm.skip = "static:2"
    llm.eval([7])
    assert read_alone(tiny)
    llm.close()


@pytest.mark.parametrize(
    "skip", ["off", "static:1,4", "cosine:threshold=0.9,warmup=0,cold_start=0,cold_end=1", PROFILE]
)
def test_changes_no_logits(tiny: Path, skip: str) -> None:
    def logits(low_memory: bool) -> npt.NDArray[np.float32]:
        llm = pyskip.Llama(tiny, skip=skip, low_memory=low_memory, n_ctx=64, logits_all=True, verbose=False)
        llm.mark_generated(0)
        llm.eval([5, 6, 7])
        llm.eval([8])
        scores: npt.NDArray[np.float32] = llm.scores[:4].copy()
        llm.close()
        return scores

    np.testing.assert_array_equal(logits(True), logits(False))


@pytest.mark.parametrize("argument", [{"use_mmap": False}, {"use_mlock": True}, {"lora_path": "x.gguf"}])
def test_refuses_what_loads_all(tiny: Path, argument: dict[str, Any]) -> None:
    with pytest.raises(pyskip.ModelLoadError, match="low_memory found"):
        pyskip.Llama(tiny, low_memory=True, verbose=False, **argument)


# In pyskip serve


@pytest.fixture(scope="module")
def packable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a type that the kernels have a layout of their own for."""
    path = tmp_path_factory.mktemp("packable") / "q4_k.gguf"
    make_random.make(path, make_random.Shape(3, 256, 512, 4, 2, 384, 128, "f32"), kind="q4_k")
    return path


@pytest.mark.loopback
@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs /proc")
def test_served(packable: Path) -> None:
    body = {"prompt": [5, 6, 7], "n_predict": 12, "temperature": 0, "skip": "static:1"}
    log = {}
    for flags in ((), ("--low-memory",)):
        args = ("-c", "64", "--skip", "off", "--kernels", "upstream", *flags, "--", "-lv", "5")
        with running(str(packable), *args) as server:
            assert server.post("/completion", body).json()["timings"]["skip_rate"] == pytest.approx(1 / 3)
            assert read_alone(packable, server.process.pid) == bool(flags)
            server.post("/completion", {**body, "skip": "off"})
            assert not read_alone(packable, server.process.pid)
            log[flags] = "".join(server.before)
    for flags, text in log.items():
        assert "CPU_Mapped model buffer" in text
        assert ("warming up" in text) != bool(flags)  # reads all weights
    assert "CPU_REPACK model buffer" not in log[("--low-memory",)]  # copies of weights
    assert "CPU_REPACK model buffer" in log[()] or platform.machine() != "x86_64"


@pytest.mark.loopback
@pytest.mark.parametrize(
    "flags", [("--load-mode", "none"), ("-lm", "mlock"), ("--repack",), ("--lora", "x.gguf"), ("--lora-scaled", "x:1")]
)
def test_the_server_refuses_what_loads_all(tiny: Path, cli: Any, flags: tuple[str, ...]) -> None:
    done = cli("serve", str(tiny), "--port", "0", "--skip", "off", "--low-memory", "--", *flags)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"--low-memory found {flags[0]}" in done.stderr

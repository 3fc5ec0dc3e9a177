"""What a process may use, in file systems as kernels and containers show them."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pyskip.cgroup import cpu_quota, memory_free, memory_limit
from pyskip.system import available_memory, physical_cores, total_memory

MB = 1 << 20
V2 = "30 20 0:26 {top} /sys/fs/cgroup rw - cgroup2 cgroup2 rw"
V1 = "32 31 0:29 {top} /sys/fs/cgroup/{name} rw,relatime - cgroup cgroup rw,{name}"
NONE_V1 = "9223372036854771712"

Root = Callable[..., Path]


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """A file system's root with these files, a machine of 16,000 MB if not said otherwise."""

    def make(files: dict[str, object]) -> Path:
        meminfo = f"MemTotal: {16000 * 1024} kB\nMemFree: 1 kB\nMemAvailable: {12000 * 1024} kB"
        for name, text in {"proc/meminfo": meminfo, **files}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(f"{text}\n")
        return tmp_path

    return make


def group(folder: str, limit: object, used: object = 0, cache: int = 0) -> dict[str, object]:
    folder = f"sys/fs/cgroup/{folder}".rstrip("/")
    stat = f"anon 5\nactive_file {cache}\ninactive_file 0"
    return {f"{folder}/memory.max": limit, f"{folder}/memory.current": used, f"{folder}/memory.stat": stat}


def test_no_limit(root: Root) -> None:
    at = root({"proc/self/cgroup": "0::/a", "proc/self/mountinfo": V2.format(top="/"), **group("a", "max", 7)})
    assert (memory_limit(at), memory_free(at), cpu_quota(at)) == (None, None, None)
    assert (total_memory(at), available_memory(at)) == (16000 * MB, 12000 * MB)


def test_no_groups(root: Root) -> None:
    at = root({})
    assert (memory_limit(at), cpu_quota(at), available_memory(at)) == (None, None, 12000 * MB)


def test_no_kernel_that_tells(tmp_path: Path) -> None:
    assert (total_memory(tmp_path), available_memory(tmp_path)) == (None, None)


def test_a_container_whose_group_is_the_root(root: Root) -> None:
    files = {"proc/self/cgroup": "0::/", "proc/self/mountinfo": V2.format(top="/")}
    at = root({**files, **group("", 150 * MB, 60 * MB, cache=20 * MB)})
    assert (memory_limit(at), memory_free(at)) == (150 * MB, 110 * MB)
    assert (total_memory(at), available_memory(at)) == (150 * MB, 110 * MB)


def test_nested(root: Root) -> None:
    """systemd's MemoryMax= of a slice counts for the services in it."""
    files = {"proc/self/cgroup": "0::/user.slice/x.service", "proc/self/mountinfo": V2.format(top="/")}
    inner, outer = group("user.slice/x.service", 900 * MB, 100 * MB), group("user.slice", 400 * MB, 350 * MB)
    at = root({**files, **inner, **outer})
    assert (memory_limit(at), memory_free(at)) == (400 * MB, 50 * MB)


def test_blanks_in_paths(root: Root) -> None:
    """mountinfo has them as octal digits, the group's own path as they are."""
    mount = V2.format(top="/").replace("/sys/fs/cgroup", "/sys/fs/cgroup/my\\040place")
    files = {"proc/self/cgroup": "0::/a b.slice", "proc/self/mountinfo": mount}
    assert memory_limit(root({**files, **group("my place/a b.slice", 150 * MB)})) == 150 * MB


def test_statistics_that_are_no_numbers(root: Root) -> None:
    files = {"proc/self/cgroup": "0::/", "proc/self/mountinfo": V2.format(top="/"), **group("", 150 * MB, 60 * MB)}
    files["sys/fs/cgroup/memory.stat"] = "active_file x\ninactive_file 10\n\n"
    assert memory_free(root(files)) == 90 * MB + 10


def test_high(root: Root) -> None:
    files = {"proc/self/cgroup": "0::/", "proc/self/mountinfo": V2.format(top="/")}
    at = root({**files, **group("", "max", 60 * MB), "sys/fs/cgroup/memory.high": 100 * MB})
    assert (memory_limit(at), memory_free(at)) == (100 * MB, 40 * MB)


@pytest.mark.parametrize("top", ["/", "/docker/1f2e"])
def test_version_1(root: Root, top: str) -> None:
    """Docker's, whose group a process sees by the full path though it is the root of what is mounted."""
    folder = "sys/fs/cgroup/memory" + ("/docker/1f2e" if top == "/" else "")
    files: dict[str, object] = {
        "proc/self/cgroup": "5:memory:/docker/1f2e\n4:cpu,cpuacct:/docker/1f2e\n0::/",
        "proc/self/mountinfo": "\n".join([V1.format(top=top, name="memory"), V1.format(top=top, name="cpu,cpuacct")]),
        f"{folder}/memory.limit_in_bytes": 150 * MB,
        f"{folder}/memory.usage_in_bytes": 100 * MB,
        f"{folder}/memory.stat": f"cache 1\ntotal_active_file {10 * MB}\ntotal_inactive_file {5 * MB}",
        f"{folder.replace('memory', 'cpu,cpuacct')}/cpu.cfs_quota_us": 150000,
        f"{folder.replace('memory', 'cpu,cpuacct')}/cpu.cfs_period_us": 100000,
    }
    if top == "/":
        files["sys/fs/cgroup/memory/memory.limit_in_bytes"] = NONE_V1
        files["sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us"] = -1
    at = root(files)
    assert (memory_limit(at), memory_free(at), cpu_quota(at)) == (150 * MB, 65 * MB, 1.5)


def test_address_space() -> None:
    """RLIMIT_AS, as the process finds it."""
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (600 << 20,) * 2)\n"
        "from pyskip.system import available_memory, total_memory\n"
        "print(available_memory() < 600 << 20, total_memory() <= 600 << 20)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "True True\n", done.stderr
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def cpus(cores: list[int], capacity: list[int] | None = None) -> dict[str, object]:
    """Logical processors, by the physical core of each."""
    files: dict[str, object] = {}
    for cpu, core in enumerate(cores):
        files[f"sys/devices/system/cpu/cpu{cpu}/topology/core_id"] = core
        files[f"sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id"] = 0
        if capacity:
            files[f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity"] = capacity[cpu]
    return files


def test_siblings_are_one_core(root: Root) -> None:
    at = root(cpus([0, 0, 1, 1]))
    assert physical_cores(at, range(4)) == 2
    assert physical_cores(at, [0, 1]) == 1  # taskset
    assert physical_cores(at, [0, 2]) == 2


def test_performance_cores(root: Root) -> None:
    """Intel's hybrids: two P-cores of two threads each, four E-cores."""
    at = root(
        {**cpus([0, 0, 1, 1, 2, 3, 4, 5]), "sys/devices/cpu_core/cpus": "0-3", "sys/devices/cpu_atom/cpus": "4-7"}
    )
    assert physical_cores(at, range(8)) == 2
    assert physical_cores(at, [3, 4, 5]) == 1
    assert physical_cores(at, [4, 5, 6]) == 3  # no others are allowed


def test_big_and_little(root: Root) -> None:
    at = root(cpus(list(range(8)), [290, 290, 290, 290, 870, 870, 870, 1024]))
    assert physical_cores(at, range(8)) == 4
    assert physical_cores(at, range(4)) == 4


@pytest.mark.parametrize(
    ("quota", "expected"), [("200000 100000", 2), ("50000 100000", 1), ("max 100000", 4), ("junk", 4)]
)
def test_quota(root: Root, quota: str, expected: int) -> None:
    files = {"proc/self/cgroup": "0::/a", "proc/self/mountinfo": V2.format(top="/"), "sys/fs/cgroup/a/cpu.max": quota}
    assert physical_cores(root({**cpus([0, 1, 2, 3]), **files}), range(4)) == expected


def test_of_this_machine() -> None:
    assert physical_cores() >= 1
    assert total_memory() is None or 0 < (available_memory() or 1) <= (total_memory() or 0)

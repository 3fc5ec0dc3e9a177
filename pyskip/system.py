"""The machine, and what this process may use of it: cores and memory.

Linux is asked by its files, for it alone has control groups; other systems by psutil, which pyskip needs there only.
"""

from __future__ import annotations

import mmap
import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .cgroup import cpu_quota, memory_free, memory_limit

__all__ = ["available_memory", "cpu_name", "governor", "physical_cores", "total_memory"]

IS_LINUX = hasattr(os, "sched_getaffinity")  # which neither Windows nor macOS has
ROOT = Path("/")


def cpu_name() -> str:
    """As the kernel calls it."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def governor() -> str:
    """The first core's frequency governor, "unknown" if the kernel does not tell."""
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text("ascii").strip()
    except OSError:
        return "unknown"


def physical_cores(root: Path = ROOT, allowed: Iterable[int] | None = None) -> int:
    """Physical cores that the process may use, at least 1: decoding collapses when threads outnumber them, and when
    fast ones wait for slow ones. Where a processor has both, the performance cores (as llama.cpp counts on x86)."""
    if allowed is None:
        if not hasattr(os, "sched_getaffinity"):
            return _performance_cores() or _psutil().cpu_count(logical=False) or os.cpu_count() or 1
        allowed = os.sched_getaffinity(0)
    cpus = set(allowed)
    cores = {_core(root, cpu) for cpu in _fast(root, cpus)}
    quota = cpu_quota(root)
    return max(1, min(len(cores), len(cores) if quota is None else int(quota)))


def _performance_cores() -> int:
    """Of Apple's processors, 0 elsewhere."""
    if sys.platform != "darwin":
        return 0
    import ctypes

    found, size = ctypes.c_int32(0), ctypes.c_size_t(4)
    name = b"hw.perflevel0.physicalcpu"  # as llama.cpp counts; Intel's have none
    ctypes.CDLL(None).sysctlbyname(name, ctypes.byref(found), ctypes.byref(size), None, 0)
    return found.value


def _psutil() -> Any:
    import psutil

    return psutil


def _core(root: Path, cpu: int) -> tuple[str, str]:
    topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
    try:
        return (topology / "physical_package_id").read_text("ascii"), (topology / "core_id").read_text("ascii")
    except OSError:
        return "", str(cpu)


def _fast(root: Path, cpus: set[int]) -> set[int]:
    """Those that are performance cores, all if the kernel tells no difference."""
    try:  # Intel's hybrids
        fast = cpus & _cpu_list((root / "sys/devices/cpu_core/cpus").read_text("ascii"))
        return fast or cpus
    except (OSError, ValueError):
        pass
    capacity: dict[int, int] = {}
    for cpu in cpus:  # ARM's, 1024 for the fastest
        try:
            capacity[cpu] = int((root / f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity").read_text("ascii"))
        except (OSError, ValueError):
            return cpus
    most = max(capacity.values(), default=0)
    return {cpu for cpu, value in capacity.items() if 2 * value >= most}


def _cpu_list(text: str) -> set[int]:
    """Of the kernel's ranges, such as 0-3,8."""
    cpus: set[int] = set()
    for span in text.strip().split(","):
        first, _, last = span.partition("-")
        cpus |= set(range(int(first), int(last or first) + 1))
    return cpus


def available_memory(root: Path = ROOT) -> int | None:
    """Bytes that the process may still allocate, the least of what the machine, the control groups and RLIMIT_AS leave;
    None if the system does not tell."""
    if not IS_LINUX:
        return int(_psutil().virtual_memory().available)
    limits = [_meminfo(root, "MemAvailable"), memory_free(root)]
    limit = _address_space()
    if limit is not None:
        limits.append(max(0, limit - _address_space_used(root)))
    return min((n for n in limits if n is not None), default=None)


def total_memory(root: Path = ROOT) -> int | None:
    """Bytes of memory that the process could have if it ran alone, None if the system does not tell."""
    if not IS_LINUX:
        return int(_psutil().virtual_memory().total)
    limits = (_meminfo(root, "MemTotal"), memory_limit(root), _address_space())
    return min((n for n in limits if n is not None), default=None)


def _address_space() -> int | None:
    """Bytes of RLIMIT_AS, None if there is no limit."""
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def _address_space_used(root: Path) -> int:
    try:
        return int((root / "proc/self/statm").read_text("ascii").split()[0]) * mmap.PAGESIZE
    except (OSError, ValueError, IndexError):
        return 0


def _meminfo(root: Path, key: str) -> int | None:
    try:
        for line in (root / "proc/meminfo").read_text("ascii").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None

"""The machine, and what this process may use of it: cores and memory."""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Iterable
from pathlib import Path

from .cgroup import cpu_quota, memory_free, memory_limit

__all__ = ["available_memory", "cpu_name", "governor", "physical_cores", "total_memory"]


def cpu_name() -> str:
    """As the kernel calls it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def governor() -> str:
    """The first core's frequency governor, "unknown" if the kernel does not tell."""
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return "unknown"


def physical_cores(root: Path = Path("/"), allowed: Iterable[int] | None = None) -> int:
    """Physical cores that the process may use, at least 1: decoding collapses when threads outnumber them, and when
    fast ones wait for slow ones. Where a processor has both, the performance cores (as llama.cpp counts on x86)."""
    if allowed is None:
        allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cpus = set(allowed)
    cores = {_core(root, cpu) for cpu in _fast(root, cpus)}
    quota = cpu_quota(root)
    return max(1, min(len(cores), len(cores) if quota is None else int(quota)))


def _core(root: Path, cpu: int) -> tuple[str, str]:
    topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
    try:
        return (topology / "physical_package_id").read_text(), (topology / "core_id").read_text()
    except OSError:
        return "", str(cpu)


def _fast(root: Path, cpus: set[int]) -> set[int]:
    """Those that are performance cores, all if the kernel tells no difference."""
    try:  # Intel's hybrids
        fast = cpus & _cpu_list((root / "sys/devices/cpu_core/cpus").read_text())
        return fast or cpus
    except (OSError, ValueError):
        pass
    capacity: dict[int, int] = {}
    for cpu in cpus:  # ARM's, 1024 for the fastest
        try:
            capacity[cpu] = int((root / f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity").read_text())
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


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that the process may still allocate, the least of what the machine, the control groups and RLIMIT_AS leave;
    None if the system does not tell."""
    limits = [_meminfo(root, "MemAvailable"), memory_free(root)]
    try:
        used = int((root / "proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        used = 0
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(max(0, soft - used))
    return min((n for n in limits if n is not None), default=None)


def total_memory(root: Path = Path("/")) -> int | None:
    """Bytes of memory that the process could have if it ran alone, None if the system does not tell."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    limits = (_meminfo(root, "MemTotal"), memory_limit(root), None if soft == resource.RLIM_INFINITY else soft)
    return min((n for n in limits if n is not None), default=None)


def _meminfo(root: Path, key: str) -> int | None:
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None

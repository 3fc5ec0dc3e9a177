"""The machine, and what this process may use of it: cores and memory."""

from __future__ import annotations

import os
import platform
import resource
from pathlib import Path

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


def physical_cores() -> int:
    """Physical cores that the process may use, at least 1: decoding collapses when threads outnumber them."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    cores = set()
    for cpu in allowed:
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            cores.add(((topology / "physical_package_id").read_text(), (topology / "core_id").read_text()))
        except OSError:
            cores.add(("", str(cpu)))
    return max(1, min(len(cores), _quota(len(cores))))


def _quota(otherwise: int) -> int:
    """Whole CPUs that the cgroup grants; `otherwise` if it sets no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return otherwise if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return otherwise


def available_memory() -> int | None:
    """Bytes that the process may still allocate, None if the system does not tell."""
    limits = [_meminfo("MemAvailable")]
    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        used = 0
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(max(0, soft - used))
    limit = _cgroup_limit()
    if limit is not None:
        try:
            current = int(Path("/sys/fs/cgroup/memory.current").read_text())
            limits.append(max(0, limit - current + _cached()))
        except (OSError, ValueError):
            pass
    return min((n for n in limits if n is not None), default=None)


def total_memory() -> int | None:
    """Bytes of memory that the process could have if it ran alone, None if the system does not tell."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    limits = (_meminfo("MemTotal"), _cgroup_limit(), None if soft == resource.RLIM_INFINITY else soft)
    return min((n for n in limits if n is not None), default=None)


def _meminfo(key: str) -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _cgroup_limit() -> int | None:
    try:
        return int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # "max": none
        return None


def _cached() -> int:
    """Bytes of the cgroup's use that are only a cache of files (a model that was read, say), free when needed."""
    stat = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
    return int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))

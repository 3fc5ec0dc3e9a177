"""What the control groups of this process grant it: memory and processors, of every group from its own up to the root.

Version 2 (/sys/fs/cgroup with cgroup.controllers), version 1 (a hierarchy for each controller), and both side by side;
in a container, whose own group may be the root of what it sees, as well as under systemd's MemoryMax= and CPUQuota=.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

__all__ = ["cpu_quota", "memory_free", "memory_limit"]

NO_LIMIT = 1 << 60  # version 1 writes a number of this kind for none

ROOT = Path("/")


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes that the process and its group may use in all; None if there is no limit."""
    return min((limit for limit, _ in _memory(root)), default=None)


def memory_free(root: Path = ROOT) -> int | None:
    """Bytes that are left of it, the cache of files counted as free; None if there is no limit."""
    return min((max(0, limit - used) for limit, used in _memory(root)), default=None)


def cpu_quota(root: Path = ROOT) -> float | None:
    """Processors' worth of time; None if there is no limit."""
    quotas: list[float] = []
    for version, folder in _groups(root, "cpu"):
        if version == 2:
            quota, _, period = _text(folder / "cpu.max").partition(" ")
        else:
            quota, period = (_text(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        if quota.isdigit() and period.isdigit() and int(period) > 0:  # "max", "-1": none
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _memory(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, used without the cache of files) of each group that has a limit."""
    for version, folder in _groups(root, "memory"):
        if version == 2:  # above memory.high a process is only slowed down, to a crawl
            texts, used = (
                [_text(folder / f"memory.{name}") for name in ("max", "high")],
                _text(folder / "memory.current"),
            )
        else:
            texts, used = [_text(folder / "memory.limit_in_bytes")], _text(folder / "memory.usage_in_bytes")
        limit = min((int(text) for text in texts if text.isdigit()), default=NO_LIMIT)
        if limit >= NO_LIMIT:
            continue
        stat = dict(line.split() for line in _text(folder / "memory.stat").splitlines() if len(line.split()) == 2)
        prefix = "" if version == 2 else "total_"
        files = [stat.get(f"{prefix}{kind}_file", "") for kind in ("active", "inactive")]
        cache = sum(int(size) for size in files if size.isdigit())
        yield limit, max(0, int(used) - cache) if used.isdigit() else 0


def _groups(root: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """(version, folder) of the process's own group and those around it, as far as they are to be seen."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        version = 2 if number == "0" and not controllers else 1
        if version == 1 and controller not in controllers.split(","):
            continue
        mount = _mount(root, version, controller)
        if mount is not None:
            yield from ((version, folder) for folder in _upwards(root, *mount, path))


def _mount(root: Path, version: int, controller: str) -> tuple[str, str] | None:
    """(which group, where) of a hierarchy that is mounted."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or not kind:
            continue
        if kind[0] == ("cgroup2" if version == 2 else "cgroup") and (version == 2 or controller in kind[-1].split(",")):
            return _unescaped(fields[3]), _unescaped(fields[4])
    return None


def _unescaped(path: str) -> str:
    """mountinfo writes blanks as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def _upwards(root: Path, top: str, where: str, path: str) -> Iterator[Path]:
    """The folders of a group and of those around it. A container may see its group as the root, or by its full path."""
    inside = os.path.relpath(path, top) if path.startswith(top) else "."
    if ".." in PurePosixPath(inside).parts:
        inside = "."
    at = root / where.lstrip("/")
    parts = [part for part in PurePosixPath(inside).parts if part != "."]
    for n in range(len(parts), -1, -1):
        yield at.joinpath(*parts[:n])


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "surrogateescape").strip()
    except (OSError, ValueError):
        return ""

"""The Ray cluster that a command runs on: an existing one, or this machine alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import PyskipError

__all__ = ["connected", "n_workers", "outcome"]

STORE_BYTES = 512 << 20  # of objects, in shared memory, on this machine alone


@contextmanager
def connected() -> Iterator[Any]:
    """Ray, connected to the cluster that RAY_ADDRESS names, else to one that begins and ends with the block: of this
    machine's cores, which listens at the loopback and tells nobody. Raises PyskipError if Ray is not installed or the
    cluster not there."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError as missing:
        raise PyskipError(
            f"this needs Ray, which is not installed (no module {missing.name}): pip install 'pyskip[ray]'"
        ) from None
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if "RAY_ADDRESS" not in os.environ:
        quiet |= {"_node_ip_address": "127.0.0.1", "include_dashboard": False, "object_store_memory": STORE_BYTES}
        quiet["num_cpus"] = len(os.sched_getaffinity(0))
    try:
        ray.init(namespace="serve", **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = os.environ.get("RAY_ADDRESS", "this machine")
        raise PyskipError(f"there is no Ray at {where} ({' '.join(str(error).split())[:200]}): start it") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def n_workers(ray: Any, n_threads: int) -> int:
    """That fit the cluster at a time. Raises PyskipError if none does."""
    n_cores = int(ray.cluster_resources().get("CPU", 0))
    if n_cores < n_threads:
        raise PyskipError(f"the cluster has {n_cores} cores, expected {n_threads} for a worker: lower -t")
    return n_cores // n_threads


def outcome(ray: Any, task: Any) -> Any:
    """What a task returned. Raises PyskipError for what it raised."""
    from ray.exceptions import RayError

    try:
        return ray.get(task)
    except RayError as error:
        raise PyskipError(" ".join(str(getattr(error, "cause", None) or error).split())) from error

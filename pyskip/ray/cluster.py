"""The Ray cluster that a command runs on: an existing one, or this machine alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from ..errors import PyskipError

__all__ = ["connected", "keep_to_loopback", "n_workers", "outcome"]

ALONE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # 0: on Linux, too, Ray knows this machine by 127.0.0.1 and listens there
LOOPBACK = "127.0.0.1"
STORE_BYTES = 512 << 20  # of objects, in shared memory, on this machine alone


@contextmanager
def connected() -> Iterator[Any]:
    """Ray, connected to the cluster that RAY_ADDRESS names, else to one that begins and ends with the block: of this
    machine's cores, which listens at the loopback and tells nobody. Raises PyskipError if Ray is not installed or the
    cluster not there."""
    if sys.platform != "linux":
        raise PyskipError(f"pyskip runs on Ray under Linux alone, found {sys.platform}: leave --ray out")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    is_alone = "RAY_ADDRESS" not in os.environ
    if is_alone:
        os.environ[ALONE] = "0"
    try:
        import ray
    except ModuleNotFoundError as missing:
        raise PyskipError(
            f"this needs Ray, which is not installed (no module {missing.name}): pip install 'pyskip[ray]'"
        ) from None
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if is_alone:
        quiet |= {"include_dashboard": False, "object_store_memory": STORE_BYTES}
        quiet["num_cpus"] = len(os.sched_getaffinity(0))
    try:
        ray.init(namespace="serve", **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = os.environ.get("RAY_ADDRESS", "this machine")
        raise PyskipError(f"there is no Ray at {where} ({' '.join(str(error).split())[:200]}): start it") from error
    try:
        with redirect_stdout(sys.stderr):  # where Ray tells of workers that died
            yield ray
    finally:
        ray.shutdown()


def keep_to_loopback() -> None:
    """In a replica, before it has started: on a cluster of this machine alone have it listen at the loopback, too. Ray
    Serve binds a port of each replica, for other replicas, to every address, and has no setting for it."""
    import ray
    from ray.serve._private import replica

    if ray.util.get_node_ip_address() == LOOPBACK:
        bind = replica.add_port_to_grpc_server
        replica.add_port_to_grpc_server = lambda server, address: bind(server, address.replace("[::]", LOOPBACK))


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

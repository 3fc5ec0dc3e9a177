"""The application on Ray Serve: replicas, each with a server of its own (pyskip.server), and, unless this machine has
a front (local.py), one that passes requests on to them through Ray. Made by pyskip.ray.app; used by run.py."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ..errors import PyskipError
from .cluster import keep_to_loopback
from .conversation import conversation
from .messages import OWN_HEADERS, error_body, error_event
from .replica import LOAD, Replica

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["Front", "Settings", "application", "by_load"]

GRACE = 30  # seconds for a replica's requests to be answered once it is to go
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


@dataclass(frozen=True)
class Settings:
    """What the application may be told. flags: of `pyskip serve`, what follows `--` included; as one text or a list."""

    model: str = "demo"
    flags: tuple[str, ...] = ()
    cores: int = 1  # of a replica, which has a thread on each
    slots: int = 4  # requests that a replica decodes at a time
    replicas: int = 1
    max_replicas: int | None = None  # more than `replicas`: as many as the requests need
    max_requests: int = 64  # of a replica: beyond it a conversation goes to another one
    max_queue: int = 256  # requests that wait while all replicas have so many; beyond it 429
    max_body: int = 1 << 20  # bytes of a request
    directory: str | None = None  # of a front on this machine (local.py), which `pyskip serve --ray` names

    @classmethod
    def read(cls, args: Mapping[str, Any]) -> Settings:
        """Of the arguments of a Ray Serve application, whose values are text where they come from a command line.
        Raises PyskipError."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(args) - known):
            raise PyskipError(
                f"the application has no argument {unknown[0]!r}, expected {', '.join(sorted(known - {'directory'}))}"
            )
        values: dict[str, Any] = {}
        for name, value in args.items():
            if name in ("model", "directory"):
                values[name] = str(value)
            elif name == "flags":
                values[name] = tuple(shlex.split(value) if isinstance(value, str) else map(str, value))
            else:
                values[name] = _count(name, value)
        settings = cls(**values)
        if settings.max_replicas is not None and settings.max_replicas < settings.replicas:
            raise PyskipError(f"max_replicas is {settings.max_replicas}, expected at least {settings.replicas}")
        return settings

    def command(self) -> list[str]:
        """The arguments of a replica's `pyskip serve`."""
        own = [self.model, "-t", str(self.cores), "--grace", str(GRACE), "--max-body", str(self.max_body)]
        passed = () if "--" in self.flags else ("--",)
        return [*own, *self.flags, *passed, "--parallel", str(self.slots)]


def _count(name: str, value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if number < 1 or isinstance(value, (bool, float)):
        raise PyskipError(f"{name} is {value!r}, expected a whole number from 1 on")
    return number


def application(settings: Settings) -> Any:
    """For serve.run(). A conversation's requests go to the replica that a consistent hash of its key names."""
    from ray import serve
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

    scale: dict[str, Any] = {"num_replicas": settings.replicas}
    if settings.max_replicas is not None:
        bounds = {"min_replicas": settings.replicas, "max_replicas": settings.max_replicas}
        policy = {"policy": AutoscalingPolicy(policy_function=by_load)} if settings.directory else {}
        scale = {"autoscaling_config": AutoscalingConfig(**bounds, target_ongoing_requests=settings.slots, **policy)}
    replicas = serve.deployment(Replica).options(
        ray_actor_options={"num_cpus": settings.cores},
        max_ongoing_requests=settings.max_requests,
        max_queued_requests=settings.max_queue,
        request_router_config=RequestRouterConfig(request_router_class=ROUTER),
        graceful_shutdown_timeout_s=GRACE + 10,
        **scale,
    )
    if settings.directory is not None:
        return replicas.bind(settings.command(), settings.cores, settings.directory)
    front = serve.deployment(Front).options(
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=1 << 16,
        graceful_shutdown_timeout_s=GRACE + 10,
    )
    return front.bind(replicas.bind(settings.command(), settings.cores), settings.max_body)


def by_load(context: Any) -> tuple[float, dict[str, Any]]:
    """How many replicas keep the requests to `slots` each: a policy of Ray Serve's, by what the front counts."""
    loads = context.aggregated_metrics.get(LOAD, {})
    return sum(loads.values()) / context.config.target_ongoing_requests, {}


class Front:
    """Behind Ray's proxies. Passes each request on to a replica, and back what it says as it comes. Until the first
    byte a replica's death is a 503; after it, an error at the end of the stream."""

    def __init__(self, replicas: Any, max_body: int) -> None:
        keep_to_loopback()
        self._replicas, self._max_body = replicas.options(stream=True, method_name="answer"), max_body

    async def __call__(self, request: Request) -> Response:
        from ray.exceptions import RayError
        from ray.serve.exceptions import BackPressureError, RayServeException
        from starlette.responses import Response, StreamingResponse

        body = await _body(request, self._max_body)
        if body is None:
            return _refusal(413, "request_too_large", f"the body has more than {self._max_body} bytes: send less")
        headers = {name: value for name, value in request.headers.items() if name not in OWN_HEADERS}
        target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        answer = self._replicas.options(session_id=conversation(headers, body)).remote(
            request.method, target, headers, body
        )
        try:
            status, told = await anext(answer)
            if "content-length" in told:
                return Response(b"".join([part async for part in answer]), status, told)
            first = await anext(answer, b"")  # a stream's headers come before it is known to go well
        except BackPressureError:
            return _refusal(429, "queue_full", "every replica has all the requests that it may: ask again later", 1)
        except (RayError, RayServeException):
            return _refusal(503, "replica_gone", "the replica that had the request is gone: ask again", 1)
        is_stream = told.get("content-type", "").startswith("text/event-stream")
        return StreamingResponse(_stream(first, answer, is_stream), status, told)


async def _body(request: Request, n_max: int) -> bytes | None:
    """None if it is longer."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > n_max:
            return None
    return bytes(body)


async def _stream(first: bytes, answer: AsyncIterator[bytes], is_stream: bool) -> AsyncIterator[bytes]:
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    yield first
    try:
        async for part in answer:
            yield part
    except (RayError, RayServeException):
        if not is_stream:
            raise  # the connection ends before the answer does
        yield error_event("replica_gone", "the replica that wrote this is gone: ask again")


def _refusal(status: int, code: str, message: str, retry_after: int | None = None) -> Response:
    from starlette.responses import Response

    headers = {"content-type": "application/json"} | ({} if retry_after is None else {"retry-after": str(retry_after)})
    return Response(error_body(code, message), status, headers)

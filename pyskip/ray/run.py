"""`pyskip serve --ray`: an application of pyskip's on Ray Serve, from Ray's own configuration file."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import PyskipError
from .application import Settings
from .cluster import connected

if TYPE_CHECKING:
    from .local import LocalFront

__all__ = ["is_local", "serve_config"]

POLL = 0.2  # seconds


def serve_config(path: str, host: str | None, port: int | None, tell: Callable[[str], None]) -> None:
    """Serve what a configuration of Ray Serve says, until SIGTERM or Ctrl-C; then requests that are there are answered.

    host, port: in the place of the file's http_options, which are 127.0.0.1:8000 if the file has none.
    tell: gets the address, once there is an answer there.

    Raises PyskipError if the file is none, Ray is not installed, or the application does not start.
    """
    config = _read(path)
    http = config["http_options"] = {**(config.get("http_options") or {})}
    http["host"] = host or http.get("host", "127.0.0.1")
    http["port"] = port or http.get("port", 8000)
    stop, has_front = threading.Event(), is_local(config, os.environ)
    with contextlib.ExitStack() as stack:
        stack.enter_context(connected())
        for number in (signal.SIGTERM, signal.SIGINT):  # Ray has put its own there
            signal.signal(number, lambda *_: stop.set())
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        checked, front = _checked(path, config), None
        if has_front:
            front = _local_front(config)
            stack.callback(front.close)
            checked = _checked(path, config)
        serve.start(proxy_location=checked.proxy_location, http_options=checked.http_options.model_dump())
        try:
            if _deploy(path, checked, stop):
                tell(f"serving at http://{http['host']}:{http['port']}; Ctrl-C stops")
                stop.wait()
                if front is not None:
                    front.refuse()
                for application in checked.applications:
                    serve.delete(application.name)  # answers what is there; shutdown() would end the connections
        finally:
            serve.shutdown()


def _checked(path: str, config: Mapping[str, Any]) -> Any:
    from ray.serve.schema import ServeDeploySchema

    try:
        return ServeDeploySchema.model_validate(config)
    except ValueError as error:
        raise PyskipError(f"{path}: {' '.join(str(error).split())[:300]}: see docs/scale.md") from None


def is_local(config: Mapping[str, Any], env: Mapping[str, str]) -> bool:
    """Whether a front in this process does what Ray's proxies would: on this machine alone, for one application of
    pyskip's, and if nothing is said of proxies that it knows nothing of."""
    (first, *others) = config["applications"] or [None]
    return (
        "RAY_ADDRESS" not in env
        and not others
        and isinstance(first, dict)
        and first.get("import_path") == "pyskip.ray:app"
        and first.get("route_prefix", "/") == "/"
        and "deployments" not in first
        and set(config.get("http_options") or {}) <= {"host", "port"}
        and not {"proxy_location", "grpc_options"} & set(config)
    )


def _local_front(config: dict[str, Any]) -> LocalFront:
    """Listening, and known to the application. Ray's proxies are left out of the configuration. Raises PyskipError."""
    from .local import LocalFront

    (application,) = config["applications"]
    args = application["args"] = {**(application.get("args") or {})}
    told, http = Settings.read(args), config["http_options"]
    front = LocalFront(
        http["host"], http["port"],
        max_requests=told.max_requests, max_queue=told.max_queue, max_body=told.max_body,
    )  # fmt: skip
    args["directory"] = str(front.directory)
    config["proxy_location"] = "Disabled"
    return front


def _read(path: str) -> dict[str, Any]:
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            config = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PyskipError(f"{path}: {' '.join(str(error).split())}, expected a configuration of Ray Serve") from None
    if not isinstance(config, dict) or not isinstance(config.get("applications"), list):
        raise PyskipError(f"{path}: found no applications, expected a configuration of Ray Serve: see docs/scale.md")
    return config


def _deploy(path: str, config: Any, stop: threading.Event) -> bool:
    """Whether every application runs, once they do; False if it was stopped before. Raises PyskipError with the reason
    if one cannot."""
    from ray import serve
    from ray.serve.context import _get_global_client  # `serve run` deploys a file by it, and by nothing public

    _get_global_client().deploy_apps(config)
    while not stop.wait(POLL):
        states = [serve.status().applications.get(app.name) for app in config.applications]
        for state in states:
            if state is not None and state.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise PyskipError(f"{path}: the application does not start: {_reason(state)}")
        if all(state is not None and state.status == "RUNNING" for state in states):
            return True
    return False


def _reason(state: Any) -> str:
    """The last line of what Ray tells, which is the error."""
    told = [state.message, *(deployment.message for deployment in state.deployments.values())]
    lines = [line.strip() for text in told for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line.split(":")[0]]
    return str((errors or lines or ["Ray does not say why"])[-1])[:400]

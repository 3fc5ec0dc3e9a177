"""`pyskip serve --ray`: an application of pyskip's on Ray Serve, from Ray's own configuration file."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from typing import Any

from ..errors import PyskipError
from .cluster import connected

__all__ = ["serve_config"]

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
    stop = threading.Event()
    with connected():
        for number in (signal.SIGTERM, signal.SIGINT):  # Ray has put its own there
            signal.signal(number, lambda *_: stop.set())
        from ray import serve
        from ray.serve.schema import ServeDeploySchema

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        try:
            checked = ServeDeploySchema.model_validate(config)
        except ValueError as error:
            raise PyskipError(f"{path}: {' '.join(str(error).split())[:300]}: see docs/scale.md") from None
        serve.start(proxy_location=checked.proxy_location, http_options=checked.http_options.model_dump())
        try:
            if _deploy(path, checked, stop):
                tell(f"serving at http://{http['host']}:{http['port']}; Ctrl-C stops")
                stop.wait()
                for application in checked.applications:
                    serve.delete(application.name)  # answers what is there; shutdown() would end the connections
        finally:
            serve.shutdown()


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

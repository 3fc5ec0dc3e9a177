"""pyskip on a Ray cluster (extra `ray`): replicas of the server behind one address, evaluations spread over workers.

Ray decides what runs where, how many replicas there are and which of them gets a request. Here is what it runs:
application.py has the replicas and the front, conversation.py tells which requests belong together, cores.py keeps
replicas of one machine apart, run.py is `pyskip serve --ray`, evaluation.py `pyskip eval --ray`. Importing this package
imports no Ray.
"""

from __future__ import annotations

from typing import Any

__all__ = ["app"]


def app(args: dict[str, Any]) -> Any:
    """The application for Ray Serve: `import_path: pyskip.ray:app`, or `serve run pyskip.ray:app model=demo`.

    args: those of docs/scale.md. Raises PyskipError for unknown ones and for values that are wrong.
    """
    from .application import Settings, application

    return application(Settings.read(args))

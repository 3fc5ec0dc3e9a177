"""Takes from pyskip what Windows does not have, in every Python that is started with this folder on PYTHONPATH:

    PYTHONPATH=tests/no_posix python -m pytest tests/test_llama.py

Modules are missing for pyskip alone: the standard library and the tests themselves may need them here. Functions and
constants are missing for all, but for those that Python's own modules cannot do without. `make portable-test` runs what
it says of the test-suite.
"""

from __future__ import annotations

import builtins
import os
import signal
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}
OF_OS = ("fork", "forkpty", "memfd_create", "mkfifo", "O_NONBLOCK", "register_at_fork", "sched_getaffinity")
OF_SIGNAL = ("SIGBUS", "SIGUSR1", "SIGUSR2", "pthread_sigmask", "setitimer", "sigwait")

_import = builtins.__import__


def _without(
    name: str,
    globals: Mapping[str, Any] | None = None,
    locals: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    importer = str((globals or {}).get("__name__", ""))
    if level == 0 and name.partition(".")[0] in MODULES and importer.partition(".")[0] == "pyskip":
        raise ModuleNotFoundError(f"No module named {name!r} on this system", name=name)
    return _import(name, globals, locals, fromlist or (), level)


builtins.__import__ = _without
for name in OF_OS:
    delattr(os, name)
for name in OF_SIGNAL:
    delattr(signal, name)

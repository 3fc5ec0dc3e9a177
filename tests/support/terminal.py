"""A terminal for tests: what a program that was started on a pseudo-terminal, or some text, leaves on the screen."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from itertools import groupby

from rich.cells import get_character_cell_size

CONTROL = re.compile(r"\x1b(?:\[([?>=]?)([0-9;]*)([A-Za-z])|[=>]|\][^\x07\x1b]*(?:\x07|\x1b\\))")
NO_EFFECT = ("h", "l", "n", "q")  # modes, and questions


class Screen:
    """Characters and their styles. `lines` are those that scrolled away, too. `odd`: sequences that it does not know,
    among them all that set titles, clipboards and addresses."""

    def __init__(self, columns: int = 80, rows: int = 24) -> None:
        self.columns, self.rows = columns, rows
        self.cells: list[list[tuple[str, str]]] = [[]]  # [line][column]: text (empty behind a wide one), style
        self.top = self.x = self.y = 0  # of the screen; of the cursor, y within the screen
        self.style = ""
        self.odd: list[str] = []
        self._rest = ""

    @property
    def lines(self) -> list[str]:
        return ["".join(text for text, _ in line).rstrip() for line in self.cells]

    @property
    def current(self) -> str:
        """The cursor's line."""
        return self.lines[self.top + self.y]

    @property
    def text(self) -> str:
        return "\n".join(self.lines).rstrip()

    def styled(self, first: int = 0) -> str:
        """From a line on, with the styles as SGR sequences."""
        out = []
        for line in self.cells[first:]:
            runs = [(style, "".join(text for text, _ in run)) for style, run in groupby(line, lambda cell: cell[1])]
            out.append("".join(f"\x1b[0{style and ';' + style}m{text}" for style, text in runs) + "\x1b[0m")
        return "\n".join(out)

    def feed(self, data: str) -> None:
        data, self._rest = self._rest + data, ""
        at = 0
        while at < len(data):
            if data[at] != "\x1b":
                self._put(data[at])
                at += 1
                continue
            found = CONTROL.match(data, at)
            if found is None:
                if len(data) - at < 64:  # not all of it has come
                    self._rest = data[at:]
                    return
                self.odd.append(data[at : at + 8])
                at += 1
                continue
            self._control(found)
            at = found.end()

    def _control(self, found: re.Match[str]) -> None:
        private, numbers, kind = found[1], found[2] or "", found[3]
        n = max(1, int(numbers.partition(";")[0] or 1))
        if kind is None or (private and kind not in NO_EFFECT):
            self.odd.append(found[0])
        elif kind == "m":
            self._set_style(numbers)
        elif kind == "A":
            self.y = max(0, self.y - n)
        elif kind == "B":
            self.y = min(self.rows - 1, self.y + n)
        elif kind == "C":
            self.x = min(self.columns - 1, self.x + n)
        elif kind == "D":
            self.x = max(0, self.x - n)
        elif kind == "G":
            self.x = n - 1
        elif kind == "K":
            del self._line()[self.x :]
        elif kind == "J" and numbers in ("", "0"):
            del self._line()[self.x :]
            del self.cells[self.top + self.y + 1 :]
        elif kind not in NO_EFFECT:
            self.odd.append(found[0])

    def _set_style(self, numbers: str) -> None:
        if numbers.startswith("0") or not numbers:
            self.style, numbers = "", numbers.lstrip("0").lstrip(";")
        self.style = f"{self.style};{numbers}".strip(";")

    def _line(self) -> list[tuple[str, str]]:
        while len(self.cells) <= self.top + self.y:
            self.cells.append([])
        return self.cells[self.top + self.y]

    def _down(self) -> None:
        if self.y == self.rows - 1:
            self.top += 1
        else:
            self.y += 1
        self._line()

    def _put(self, c: str) -> None:
        if c == "\n":
            self._down()
        elif c == "\r":
            self.x = 0
        elif c == "\t":
            self.x = min(self.columns - 1, self.x // 8 * 8 + 8)
        elif c == "\b":
            self.x = max(0, self.x - 1)
        elif c < " " or "\x7f" <= c < "\xa0":
            self.odd.append(c)
        else:
            self._write(c, get_character_cell_size(c))

    def _write(self, c: str, width: int) -> None:
        line = self._line()
        if width == 0:
            if self.x and len(line) >= self.x:
                line[self.x - 1] = (line[self.x - 1][0] + c, line[self.x - 1][1])
            return
        if self.x + width > self.columns:
            self.x = 0
            self._down()
            line = self._line()
        line.extend([(" ", "")] * (self.x - len(line)))
        line[self.x : self.x + width] = [(c, self.style), *[("", self.style)] * (width - 1)]
        self.x += width


class Terminal:
    """A command of pyskip on a pseudo-terminal."""

    def __init__(self, *args: str, columns: int = 80, rows: int = 24, **env: str) -> None:
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.before = termios.tcgetattr(self.slave)
        kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR")}
        ours = {
            "TERM": "xterm-256color",
            "PROMPT_TOOLKIT_NO_CPR": "1",
            "LANG": "C.UTF-8",
            "XDG_STATE_HOME": "/dev/null",
        }
        env = {**kept, **ours, **env}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pyskip", *args],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env=env,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        self.screen = Screen(columns, rows)
        self.said = ""  # all that came
        self._seen = 0

    def _read(self, timeout: float) -> bool:
        if not select.select([self.master], [], [], max(0.0, timeout))[0]:
            return False
        data = os.read(self.master, 65536).decode("utf-8", "replace")
        self.said += data
        self.screen.feed(data)
        return True

    def wait_for(self, text: str, timeout: float = 60.0) -> None:
        """Until this came, after what was waited for before."""
        end = time.monotonic() + timeout
        while text not in self.said[self._seen :]:
            assert self._read(end - time.monotonic()), f"never saw {text!r} in {self.said[self._seen :]!r}"
        self._seen = self.said.index(text, self._seen) + len(text)

    def rest(self, quiet: float = 0.5) -> None:
        """Read until nothing comes for some time."""
        while self._read(quiet):
            pass

    def watch(self, seconds: float) -> None:
        """Read for so long, whatever comes."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._read(left)

    def send(self, text: str) -> None:
        os.write(self.master, text.encode())

    def prompt(self) -> None:
        """Until an empty prompt is there."""
        end = time.monotonic() + 60
        while self.screen.current != ">" or self._read(0.2):
            assert self.screen.current == ">" or self._read(end - time.monotonic()), f"no prompt: {self.said!r}"
        self._seen = len(self.said)

    def ask(self, text: str, *until: str) -> None:
        """A line, once the prompt is there; then until these came."""
        self.prompt()
        self.send(text + "\r")
        for each in until:
            self.wait_for(each)

    def interrupt(self) -> None:
        """Ctrl-C while an answer comes; at the prompt it is a key, \\x03."""
        self.process.send_signal(signal.SIGINT)

    def close(self) -> int:
        """The exit code; the terminal must be as it was."""
        try:
            status = self.process.wait(60)
            self.rest(0.1)
            assert termios.tcgetattr(self.slave) == self.before
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self.master)
            os.close(self.slave)
        return status

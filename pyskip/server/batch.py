"""Many requests out of a file, answered by a server as fast as it can, into another file: `pyskip generate --input`.

A line of the input is the body of a request, with `prompt` or `messages`, or a line of OpenAI's batch files, which
holds such a body with a name: {"custom_id", "method", "url", "body"}. A line of the output is one of OpenAI's, in the
order in which answers come: {"custom_id", "response": {"status_code", "body"}, "error": null}. Without a name a
request goes by the number of its line. Answers that are there are not asked for again.
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pyskip.errors import PyskipError
from pyskip.json_lines import object_of

__all__ = ["Request", "answer_all", "read_requests"]

PATHS = {"messages": "/v1/chat/completions", "prompt": "/v1/completions"}
TRIES = 30  # of a request that a server does not take (503, 429), or whose connection ends
WAIT = 1.0  # seconds between two, if the server names none


@dataclass(frozen=True)
class Request:
    custom_id: str
    path: str
    body: Mapping[str, Any]


def read_requests(path: str | os.PathLike[str], otherwise: Mapping[str, Any]) -> list[Request]:
    """Those of a file, with fields that a body does not say itself. Empty lines do not count. Raises PyskipError with
    the line for what is no request."""
    try:
        lines = Path(path).read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise PyskipError(f"{os.fspath(path)}: {reason}, expected requests, one JSON object a line (--input)") from None
    found: dict[str, Request] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            request = _request(f"{os.fspath(path)}, line {number}", line, str(number), otherwise)
            if request.custom_id in found:
                raise PyskipError(f"{os.fspath(path)}, line {number}: another request is named {request.custom_id!r}")
            found[request.custom_id] = request
    if not found:
        raise PyskipError(f"{os.fspath(path)}: empty, expected requests, one JSON object a line (--input)")
    return list(found.values())


def _request(where: str, line: str, number: str, otherwise: Mapping[str, Any]) -> Request:
    document = object_of(where, line)
    body = document.get("body", document)
    url = document.get("url") if "body" in document else None
    if url is None:
        url = next((path for key, path in PATHS.items() if isinstance(body, dict) and key in body), None)
    if url is None or not isinstance(body, dict):
        raise PyskipError(f'{where}: found neither "prompt" nor "messages", expected the body of a request')
    if not isinstance(url, str) or not url.startswith("/v1/"):
        raise PyskipError(f'{where}: "url" is {str(url)[:40]!r}, expected a path such as /v1/completions')
    name = document.get("custom_id", number)
    told = {key: value for key, value in body.items() if key != "custom_id"}
    return Request(str(name), url, {**otherwise, **told, "stream": False})


def answer_all(
    url: str,
    requests: Sequence[Request],
    output: str | os.PathLike[str],
    n_at_a_time: int,
    progress: Callable[[int, int], None],
    *,
    api_key: str | None = None,
) -> int:
    """Ask the server at this address for what the output lacks, and write each answer as soon as it is there. Returns
    how many of all answers are errors.

    Raises PyskipError if the output cannot be written, is no such file or another input's, or the server is gone.
    """
    path, wanted = Path(output), {request.custom_id: request for request in requests}
    there = _read_answers(path, wanted)
    missing: queue.SimpleQueue[Request] = queue.SimpleQueue()
    for name, request in wanted.items():
        if name not in there:
            missing.put(request)
    n_failed, n_done = sum(status != 200 for status in there.values()), len(there)
    answers: queue.Queue[tuple[Request, int, Any] | PyskipError] = queue.Queue()
    stop = threading.Event()
    for _ in range(min(n_at_a_time, missing.qsize())):
        threading.Thread(target=_work, args=(url, api_key, missing, answers, stop), daemon=True).start()
    if n_done:
        progress(n_done, len(wanted))
    try:
        while n_done < len(wanted):
            answer = answers.get()
            if isinstance(answer, PyskipError):
                raise answer
            request, status, body = answer
            _append(
                path, {"custom_id": request.custom_id, "response": {"status_code": status, "body": body}, "error": None}
            )
            n_done, n_failed = n_done + 1, n_failed + (status != 200)
            progress(n_done, len(wanted))
    finally:
        stop.set()
    return n_failed


def _work(
    url: str,
    api_key: str | None,
    missing: queue.SimpleQueue[Request],
    answers: queue.Queue[tuple[Request, int, Any] | PyskipError],
    stop: threading.Event,
) -> None:
    where = urlsplit(url)
    kind = http.client.HTTPSConnection if where.scheme == "https" else http.client.HTTPConnection
    connection = kind(where.netloc)
    headers = {"Content-Type": "application/json"} | ({} if api_key is None else {"Authorization": f"Bearer {api_key}"})
    while not stop.is_set():
        try:
            request = missing.get_nowait()
        except queue.Empty:
            break
        try:
            answers.put((request, *_asked(connection, where.path.rstrip("/") + request.path, request.body, headers)))
        except PyskipError as error:
            answers.put(PyskipError(f"{url}: {error}: the same command goes on from here"))
    connection.close()


def _asked(
    connection: http.client.HTTPConnection, path: str, body: Mapping[str, Any], headers: Mapping[str, str]
) -> tuple[int, Any]:
    """Status and body. Raises PyskipError if there is no answer, or no server that takes it."""
    raw, reason, wait = json.dumps(body).encode(), "", 0.0
    for _ in range(TRIES):
        time.sleep(wait)
        try:
            connection.request("POST", path, raw, dict(headers))
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            reason, wait = f"no answer ({str(error) or type(error).__name__})", WAIT
            continue
        if answer.status not in (429, 503):
            try:
                return answer.status, json.loads(text)
            except ValueError:
                return answer.status, text.decode("utf-8", "replace")
        reason, wait = f"{answer.status} again and again", float(answer.getheader("Retry-After") or WAIT)
    raise PyskipError(reason)


def _read_answers(path: Path, wanted: Mapping[str, Request]) -> dict[str, int]:
    """Statuses by name; a last line that was cut off is cut off whole. Raises PyskipError."""
    try:
        whole, newline, cut = path.read_bytes().rpartition(b"\n")
    except FileNotFoundError:
        whole, newline, cut = b"", b"", b""
    except OSError as error:
        raise PyskipError(f"{path}: {error.strerror}, expected a file to write (--output)") from error
    there: dict[str, int] = {}
    for number, line in enumerate(whole.split(b"\n") if newline else (), 1):
        try:
            document = json.loads(line)
            there[str(document["custom_id"])] = int(document["response"]["status_code"])
        except (ValueError, KeyError, TypeError):
            raise PyskipError(f"{path}, line {number}: no answer to a request: name another file (--output)") from None
    if strange := sorted(set(there) - set(wanted)):
        raise PyskipError(f"{path}: answers {strange[0]!r}, which is not asked for: name another file (--output)")
    if cut:
        if not newline and not cut.startswith(b'{"custom_id": '[: len(cut)]):
            raise PyskipError(f"{path}, line 1: no answer to a request: name another file (--output)")
        os.truncate(path, len(whole) + len(newline))
    return there


def _append(path: Path, document: Mapping[str, Any]) -> None:
    try:
        with path.open("ab") as file:
            file.write(json.dumps(document).encode() + b"\n")
    except OSError as error:
        raise PyskipError(
            f"{path}: cannot be written ({error.strerror or error}): make room and repeat the command, which goes on "
            "from here"
        ) from error

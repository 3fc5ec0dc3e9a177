"""A conversation in a file: its messages, and the KV cache that was computed for them.

The file is a zip archive of two members, stored as they are: `session.json` (a Session, and the build that the state
is of) and `state.bin` (llama_state_seq_get_data() of sequence 0), which may be missing. None of it is believed:
sizes are those of the archive, the JSON is checked field by field, and a state that does not fit is not used.
"""

from __future__ import annotations

import itertools
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..binding.library import BUILD
from ..errors import PolicyError, PyskipError
from ..policy import parse_skip
from ..replace import replacing
from ..runtime.generation import Message
from ..runtime.llama import Llama
from ..runtime.media import is_placeholder, is_self_contained

__all__ = ["Session", "load_session", "save_session"]

VERSION = 1
MAX_JSON = 64 << 20  # bytes
MAX_STATE = 1 << 30  # bytes, beside what the KV cache may take: recurrent states
ROLES = ("user", "assistant")
MAX_LINE = 100  # characters of a name that a message quotes


@dataclass(frozen=True)
class Session:
    """What a session file says."""

    model: str  # its name, for messages
    system: str | None
    turns: tuple[Message, ...]  # user, assistant, user, ...
    skip: str | None  # the policy; None if a pace was kept
    tokens: tuple[int, ...]  # in the KV cache


def save_session(path: str | os.PathLike[str], llm: Llama, system: str | None, turns: Sequence[Message]) -> None:
    """Write what was said and the state of the model, which may be large, for the owner of the file only. An old
    session stays as it was if this fails. Raises PyskipError if the file cannot be written, or is something else.
    """
    target = Path(path)
    if "\0" in str(target):
        raise PyskipError("the file's name holds a NUL byte: name another")
    target = target.resolve()  # through a link
    if target.exists() and not _is_session(target):
        raise PyskipError(f"{target}: is there and no session, expected a new file or an old session: name another")
    tokens = list(llm.eval_tokens)
    state = llm.save_sequence()
    document = {
        "pyskip_session": VERSION,
        "build": BUILD,
        "fingerprint": llm.engine.info.fingerprint,
        "model": llm.engine.info.name,
        "system": system,
        "turns": list(turns),
        "skip": str(llm.skip) if llm.pace is None else None,
        "tokens": tokens if state else [],
    }
    try:
        with replacing(target, private=True) as name, zipfile.ZipFile(name, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("session.json", json.dumps(document))
            if state:
                archive.writestr("state.bin", state)
    except OSError as error:
        reason = error.strerror or error
        raise PyskipError(f"{target}: cannot be written ({reason}): name another file, or make room") from error


def load_session(path: str | os.PathLike[str], llm: Llama) -> tuple[Session, str | None]:
    """Read a session and put its state into the model, with which the conversation goes on as if never left.

    Returns the session, and the reason if its state cannot be used: the model is empty then, and decodes the
    messages with the next prompt. Does not set the policy. Raises PyskipError if the file is no session, is damaged,
    or is another model's; the model is as it was then.
    """
    document, state = _read(Path(path), llm)
    session = _checked(Path(path), document, llm)
    reason = "it has none" if not state else None
    if state and document["build"] != BUILD:
        reason = "it is of another build"
    elif state and len(session.tokens) > llm.n_ctx():
        reason = f"it holds {len(session.tokens)} tokens, the context {llm.n_ctx()}"
    refused = llm.restore_sequence(session.tokens, state if reason is None else None)
    return session, reason or refused


# The file


def _wrong(path: Path, found: str) -> PyskipError:
    return PyskipError(f"{path}: {found}, expected a session that /save wrote: load another file")


def _is_session(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return "session.json" in archive.namelist()
    except Exception:  # zipfile raises what it likes for damaged files
        return False


def _read(path: Path, llm: Llama) -> tuple[dict[str, Any], bytes]:
    """session.json as JSON, and the state's bytes. zipfile checks their sums."""
    try:
        n_bytes = path.stat().st_size
        if not path.is_file():
            raise _wrong(path, "not a file")
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            limits = {"session.json": MAX_JSON, "state.bin": _largest_state(llm)}
            if not {"session.json"} <= set(members) <= set(limits):
                raise _wrong(path, "a zip archive of something else")
            for name, info in members.items():
                stored = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
                if not stored or info.file_size > min(n_bytes, limits[name]):
                    raise _wrong(path, f"{name} is packed, or too large ({info.file_size} bytes)")
            document = json.loads(archive.read("session.json").decode("utf-8"))
            state = archive.read("state.bin") if "state.bin" in members else b""
    except PyskipError:
        raise
    except OSError as error:
        raise PyskipError(
            f"{path}: cannot be read ({error.strerror or error}): name a file that /save wrote"
        ) from error
    except MemoryError as error:
        raise _wrong(path, "too large for memory") from error
    except Exception as error:  # zipfile and json raise what they like for damaged files
        reason = " ".join(str(error).split())[:MAX_LINE] or type(error).__name__
        raise _wrong(path, f"damaged, or no session ({reason})") from error
    if not isinstance(document, dict) or document.get("pyskip_session") != VERSION:
        raise _wrong(path, f"not a session of version {VERSION}")
    return document, state


def _largest_state(llm: Llama) -> int:
    return MAX_STATE + 4 * llm.n_ctx() * llm.engine.info.kv_bytes_per_token


def _checked(path: Path, document: dict[str, Any], llm: Llama) -> Session:
    """Raises PyskipError if a field is not what save_session() writes, or the model is another."""
    texts = {key: document.get(key) for key in ("build", "fingerprint", "model", "system", "skip")}
    optional = ("system", "skip")
    for key, value in texts.items():
        if not _is_text(value) and not (key in optional and value is None):
            raise _wrong(path, f"its {key} is no text")
    if texts["fingerprint"] != llm.engine.info.fingerprint:
        name = "".join(c if c.isprintable() else "?" for c in str(texts["model"]))[:MAX_LINE] or "unnamed"
        raise PyskipError(f"{path}: a session of another model ({name}): chat with that one, or load another file")
    turns, tokens = document.get("turns"), document.get("tokens")
    if not isinstance(turns, list) or len(turns) % 2 or not all(map(_is_turn, turns, itertools.cycle(ROLES))):
        raise _wrong(path, "its turns are not texts of user and assistant in turn")
    n_vocab = llm.n_vocab()
    if not isinstance(tokens, list) or not all(_is_token(token, n_vocab) for token in tokens):
        raise _wrong(path, f"its tokens are not numbers below {n_vocab}")
    if texts["skip"] is not None:
        try:
            parse_skip(texts["skip"])
        except PolicyError as error:
            raise _wrong(path, str(error).partition(", expected")[0]) from None
    return Session(str(texts["model"]), texts["system"], tuple(turns), texts["skip"], tuple(tokens))


def _is_text(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(value.encode("utf-8") or True)
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def _is_turn(value: object, role: str) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"role", "content"}
        and value["role"] == role
        and (_is_text(value["content"]) or _is_parts(value["content"]))
    )


def _is_parts(value: object) -> bool:
    """Text, and images and audio that are in the file itself: it must not name others."""
    return isinstance(value, list) and all(_is_text_part(part) or is_self_contained(part) for part in value)


def _is_text_part(part: object) -> bool:
    return (
        isinstance(part, dict) and set(part) == {"type", "text"} and part["type"] == "text" and _is_text(part["text"])
    )


def _is_token(value: object, n_vocab: int) -> bool:
    return type(value) is int and (0 <= value < n_vocab or (value >= -(2**31) and is_placeholder(value)))

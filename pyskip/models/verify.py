"""Whether a file is the one that was promised, by its sha256. Called by hub.py and download.py.

Hashing a large model takes seconds, so what was found is kept beside the cache's blobs, for as long as the file's size
and times are what they were."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..replace import replacing

__all__ = ["has_sha256", "sha256_of"]

NAME = ".pyskip-sha256.json"


def has_sha256(path: Path, sha256: str, store: Path) -> bool:
    """store: the repository's folder in the cache. Raises OSError if the file cannot be read."""
    real = path.resolve()
    stat = real.stat()
    identity = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    known = _read(store)
    if known.get(real.name, [None])[:-1] != identity:
        known[real.name] = [*identity, sha256_of(real)]
        with suppress(OSError), replacing(store / NAME) as name:  # OSError: a cache that may only be read
            Path(name).write_text(json.dumps(known), "utf-8")
    return bool(known[real.name][-1] == sha256)


def _read(store: Path) -> dict[str, Any]:
    try:
        known = json.loads((store / NAME).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) and all(isinstance(value, list) for value in known.values()) else {}


def sha256_of(path: Path) -> str:
    """In hexadecimal. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()

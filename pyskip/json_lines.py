"""Files with a JSON object a line."""

from __future__ import annotations

import json
from typing import Any

from .errors import PyskipError

__all__ = ["object_of"]


def object_of(where: str, line: str) -> dict[str, Any]:
    """The object in a line. Raises PyskipError with `where`, which is the file and the line, if there is none."""
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PyskipError(f"{where}: not JSON ({error}), expected one JSON object a line") from None
    if not isinstance(document, dict):
        raise PyskipError(f"{where}: a JSON {type(document).__name__}, expected an object")
    return document

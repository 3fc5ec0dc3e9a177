"""What policies scored, window by window (item by item), in a file that an evaluation can be taken up from.

Used by evaluate.py and summaries.py, whose results are made from these records and nothing else: a run that
was taken up gives the same to the last bit. JSON lines: a header, which says what was evaluated, then a record a line;
arrays as base64 of little-endian numbers.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import PyskipError

__all__ = ["Journal", "Record"]

Header = Mapping[str, str | int]


@dataclass(frozen=True)
class Record:
    """What a policy scored on one window or item, and the blocks that it skipped for it."""

    n_tokens: int  # that count for the skip rate
    skipped: npt.NDArray[np.int64]  # [2*n_layer] of them: FFNs, then attention
    values: npt.NDArray[np.float64]  # [n_kinds, n] figures, of kinds that the evaluation knows


class Journal:
    """Records by arm and by number of window or item. Without a path they are held in memory only.

    path: read if it exists, and carried on; a last line that was cut off while it was written is written over.
    header: what is evaluated; a file with another is refused. A key that ends in "_name" is for the reader only.

    Raises PyskipError if the file is no journal, or that of another evaluation.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, header: Header | None = None) -> None:
        self._records: dict[tuple[str, int], Record] = {}
        self._path = None if path is None else Path(path)
        if self._path is not None:
            self._open(self._path, {"pyskip_eval": 1, **(header or {})})

    def __contains__(self, key: tuple[str, int]) -> bool:
        return key in self._records

    def put(self, arm: str, i: int, record: Record) -> None:
        """Keep a record, on disk before this returns; one that is there already stays as it is. Raises PyskipError."""
        if (arm, i) in self._records:
            return
        self._records[arm, i] = record
        if self._path is not None:
            try:
                with open(self._path, "ab") as file:
                    file.write(_line({"arm": arm, "i": i, **_packed(record)}))
            except OSError as error:
                raise PyskipError(
                    f"{self._path}: cannot be written ({error.strerror or error}): make room and repeat the command, "
                    "which goes on from here (--resume)"
                ) from error

    def records(self, arm: str, n: int) -> list[Record]:
        """Those of windows (items) 0 to n - 1, all of which must be there."""
        return [self._records[arm, i] for i in range(n)]

    def arms(self, i: int) -> dict[str, Record]:
        """Those of window (item) i, by arm."""
        return {arm: record for (arm, at), record in self._records.items() if at == i}

    # The file

    def _open(self, path: Path, header: Header) -> None:
        whole, cut = _lines(path)
        if not whole:
            if not _line(header).startswith(cut):
                raise PyskipError(f"{path}, line 1: not the header of an evaluation: name a new file (--resume)")
            try:
                path.write_bytes(_line(header))
            except OSError as error:
                raise PyskipError(f"{path}: {error.strerror or error}, expected a file to write (--resume)") from error
            return
        self._check(path, whole[0], header)
        for number, line in enumerate(whole[1:], 2):
            try:
                document = json.loads(line)
                self._records[str(document["arm"]), int(document["i"])] = _unpacked(document)
            except (ValueError, KeyError, TypeError) as error:
                raise PyskipError(
                    f"{path}, line {number}: not a record of an evaluation ({error!r}): delete the line, or name a new "
                    "file (--resume)"
                ) from None
        if cut:
            os.truncate(path, path.stat().st_size - len(cut))

    def _check(self, path: Path, line: bytes, header: Header) -> None:
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict) or "pyskip_eval" not in found:
            raise PyskipError(f"{path}, line 1: not the header of an evaluation: name a new file (--resume)")
        compared = [key for key in {**header, **found} if not key.endswith("_name")]
        differ = [f"{k} is {found.get(k)}, now {header.get(k)}" for k in compared if found.get(k) != header.get(k)]
        if differ:
            raise PyskipError(
                f"{path}: belongs to another evaluation ({'; '.join(differ)}): repeat that one, or name a new file "
                "(--resume)"
            )


def _lines(path: Path) -> tuple[Sequence[bytes], bytes]:
    """The whole lines of a file, and what follows the last."""
    try:
        *whole, cut = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return (), b""
    except OSError as error:
        raise PyskipError(f"{path}: {error.strerror or error}, expected a file to resume from (--resume)") from error
    return whole, cut


def _line(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document).encode() + b"\n"


def _packed(record: Record) -> dict[str, Any]:
    return {
        "n_tokens": record.n_tokens,
        "skipped": base64.b64encode(record.skipped.astype("<i8").tobytes()).decode(),
        "n_kinds": len(record.values),
        "values": base64.b64encode(record.values.astype("<f8").tobytes()).decode(),
    }


def _unpacked(document: dict[str, Any]) -> Record:
    skipped, values = (base64.b64decode(document[key], validate=True) for key in ("skipped", "values"))
    return Record(
        int(document["n_tokens"]),
        np.frombuffer(skipped, "<i8").astype(np.int64),
        np.frombuffer(values, "<f8").astype(np.float64).reshape(int(document["n_kinds"]), -1),
    )

"""One file of the Hub into huggingface-hub's cache, resumably. Called by hub.py.

huggingface-hub throws away what it has of a file when a download breaks off. So the bytes come here first, by its own
http_get, into `blobs/ETAG.incomplete`; once they are whole and have the right sha256 they become `blobs/ETAG`, and
hf_hub_download finds the blob and makes the rest of its cache's layout.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import Timeout
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import WeakFileLock, build_hf_headers

from ..errors import ModelLoadError
from .quantisations import RepoFile, size_text
from .verify import has_sha256, sha256_of

__all__ = ["download"]


def download(repo: str, file: RepoFile, revision: str, store: Path, tell: Callable[[str], None]) -> Path:
    """The file's path in the cache, of which `store` is the repository's folder.

    Raises ModelLoadError for a full disk and for bytes that are not those the Hub promised, and what huggingface-hub
    raises.
    """
    url = hf_hub_url(repo, file.path, revision=revision)
    found = get_hf_file_metadata(url)
    if found.etag is None or {os.sep, "/"} & set(found.etag) or found.size != file.size:
        raise ModelLoadError(
            f"{url}: found ETag {found.etag} and {found.size} bytes, expected {file.size} as the repository lists it: "
            "check HF_ENDPOINT, or try again in a while"
        )
    blob = store / "blobs" / found.etag
    blob.parent.mkdir(parents=True, exist_ok=True)
    if file.sha256 and blob.exists() and not has_sha256(blob, file.sha256, store):
        tell(f"{file.path}: what is in the cache is damaged, and got again")
        blob.unlink()
    if not blob.exists():
        with _locked(blob, tell):
            _get(blob, url, file, tell)
    path = Path(hf_hub_download(repo, file.path, revision=revision))
    if file.sha256 and path.resolve() != blob.resolve() and not has_sha256(path, file.sha256, store):
        raise ModelLoadError(
            f"{file.path}: {path} is not the file that was checked (sha256 {file.sha256}): delete it, and try again"
        )
    if file.sha256 and not path.is_symlink() and not path.samefile(blob):
        _share(path, blob)
    return path


def _share(copy: Path, blob: Path) -> None:
    """One file again: without symbolic links (Windows, if nobody allows them) huggingface-hub copies the blob."""
    linked = blob.with_name(f"{blob.name}.linked")
    with suppress(OSError):
        os.link(copy, linked)
        os.replace(linked, blob)


@contextmanager
def _locked(blob: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """By the lock that huggingface-hub itself takes: no other process gets the blob meanwhile."""
    path = blob.parents[2] / ".locks" / blob.parents[1].name / f"{blob.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(WeakFileLock(path, timeout=0.1))
        except Timeout:
            tell("another process downloads this file: waiting for it")
            held.enter_context(WeakFileLock(path))
        yield


def _get(blob: Path, url: str, file: RepoFile, tell: Callable[[str], None]) -> None:
    """While it is locked. Windows neither moves nor deletes a file that is open."""
    if blob.exists():  # by the process that had the lock before
        return
    partial = blob.with_name(f"{blob.name}.incomplete")
    with partial.open("ab+") as bytes_so_far:
        _fill(bytes_so_far, url, file, tell)
    _verify(partial, file)
    os.replace(partial, blob)


def _fill(partial: BinaryIO, url: str, file: RepoFile, tell: Callable[[str], None]) -> None:
    """Get the bytes that are missing. They are kept whatever happens."""
    have = partial.seek(0, os.SEEK_END)
    if have > file.size:
        have = partial.truncate(partial.seek(0))
    folder = Path(partial.name).parent
    free = shutil.disk_usage(folder).free
    if file.size - have > free:
        raise _no_room(file, folder, f"{size_text(file.size - have)} are needed, {size_text(free)} free")
    going_on = f", of which {size_text(have)} are there" if have else ""
    tell(f"downloading {file.path}, {size_text(file.size)}{going_on}")
    try:
        http_get(
            url, partial, resume_size=have, headers=build_hf_headers(), expected_size=file.size,
            displayed_filename=file.path,
        )  # fmt: skip
        partial.flush()
    except KeyboardInterrupt:
        partial.flush()
        tell(f"stopped at {size_text(partial.tell())} of {size_text(file.size)}: the same command goes on from there")
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _no_room(file, folder, os.strerror(error.errno)) from error
        raise


def _no_room(file: RepoFile, folder: Path, found: str) -> ModelLoadError:
    return ModelLoadError(
        f"{file.path}: no room in {folder} ({found}): free some, or set HF_HOME to a folder that has it"
    )


def _verify(partial: Path, file: RepoFile) -> None:
    """Raises ModelLoadError, and drops the bytes, if they are not the file's."""
    found = file.sha256 and sha256_of(partial)
    if found != file.sha256:
        partial.unlink()
        raise ModelLoadError(
            f"{file.path}: sha256 is {found}, expected {file.sha256}: what came was damaged on the way "
            "and is thrown away; try again"
        )

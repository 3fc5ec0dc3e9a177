"""Models of the Hugging Face Hub. Called by names.py; imported only when one is asked for, since that is slow.

Cache, token (HF_TOKEN, `hf auth login`), mirror (HF_ENDPOINT) and offline mode (HF_HUB_OFFLINE) are huggingface-hub's.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token, is_offline_mode
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import httpx

from ..errors import ModelLoadError
from ..replace import replacing
from ..system import total_memory
from .download import download
from .quantisations import Model, RepoFile, choose, find, models_in, nearest
from .verify import has_sha256

__all__ = ["in_cache", "locate"]

REVISION = re.compile(r"[0-9a-f]{7,64}|main")
Tell = Callable[[str], None]


def locate(repo: str, asked: str | None, sha256: str | None, *, refresh: bool, tell: Tell) -> Path:
    """The model's file: from the cache, or after what is missing of it was downloaded. Raises ModelLoadError.

    asked: a path in the repository, a file's name or a quantisation; None: what suits this machine. sha256: what the
    file must have. refresh: a model in the cache is looked up on the Hub all the same.
    """
    path = None if refresh and not is_offline_mode() else _cached(repo, asked, sha256, tell)
    return path or _fetched(repo, asked, sha256, tell)


def _cached(repo: str, asked: str | None, sha256: str | None, tell: Tell) -> Path | None:
    """The model's file if all of it is in the cache, and its first file is what the catalogue says."""
    snapshot = _snapshot(repo)
    if snapshot is None:
        return None
    paths = [path for path in snapshot.rglob("*") if path.is_file()]
    models = models_in(RepoFile(path.relative_to(snapshot).as_posix(), path.stat().st_size) for path in paths)
    models = find(models, asked) if asked else models
    if not models:
        return None
    model, why = choose(models, total_memory())
    if not asked:
        tell(f"hf:{repo}: {why}; from the cache")
    if sha256 is not None and not has_sha256(snapshot / model.path, sha256, _store(repo)):
        if is_offline_mode():
            raise ModelLoadError(
                f"{snapshot / model.path}: not the file of the catalogue (sha256 {sha256}), and HF_HUB_OFFLINE is set: "
                f"unset it to download, or take it as it is with hf:{repo}:{model.path}"
            )
        tell(f"hf:{repo}: {model.path} in the cache is not the catalogue's (sha256 differs)")
        return None
    return snapshot / model.path


def _fetched(repo: str, asked: str | None, sha256: str | None, tell: Tell) -> Path:
    name = f"hf:{repo}:{asked}" if asked else f"hf:{repo}"
    try:
        with _warnings_to(tell):
            revision, files = _listing(repo)
            model = _wanted(repo, files, asked, tell)
            if sha256 is not None:
                model = _checked(repo, model, sha256)
            paths = [download(repo, file, revision, _store(repo), tell) for file in model.files]
            _remember(repo, revision)
    except ModelLoadError as error:
        raise ModelLoadError(f"{name}: {error}") from error
    except (httpx.HTTPError, httpx.InvalidURL, OSError, HFValidationError) as error:
        raise ModelLoadError(f"{name}: {_reason(repo, error)}") from error
    return paths[0]


def _store(repo: str) -> Path:
    """The repository's folder in the cache."""
    return Path(constants.HF_HUB_CACHE).expanduser() / repo_folder_name(repo_id=repo, repo_type="model")


def _remember(repo: str, revision: str) -> None:
    """That this is what the repository had when it was looked at last: where _snapshot() looks. (huggingface-hub writes
    it only if it is asked for a branch, which may have moved between the list of files and the last of them.)"""
    if revision == constants.DEFAULT_REVISION:
        return
    refs = _store(repo) / "refs"
    refs.mkdir(parents=True, exist_ok=True)
    with replacing(refs / constants.DEFAULT_REVISION) as name:
        Path(name).write_text(revision, "utf-8")


def in_cache(repo: str, file: str) -> bool:
    """Whether `pyskip list` may call it there."""
    snapshot = _snapshot(repo)
    return snapshot is not None and (snapshot / file).is_file()


def _snapshot(repo: str) -> Path | None:
    """The folder of the files that were got last."""
    try:
        snapshot = _store(repo) / "snapshots" / (_store(repo) / "refs" / "main").read_text("utf-8")
    except (OSError, HFValidationError):
        return None
    return snapshot if snapshot.is_dir() else None


def _listing(repo: str) -> tuple[str, list[RepoFile]]:
    """The newest commit of a repository, and its files."""
    try:
        info = HfApi().model_info(
            repo, revision=constants.DEFAULT_REVISION, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
        files = [
            RepoFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else None)
            for file in info.siblings or []
        ]
        revision = info.sha or constants.DEFAULT_REVISION
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, (httpx.HTTPError, OSError, HFValidationError)):
            raise
        raise ModelLoadError(
            f"{constants.ENDPOINT} does not answer as the Hub does: check HF_ENDPOINT and the proxy"
        ) from error
    outside = next((file.path for file in files if not _is_inside(file.path)), None)
    if outside is not None or not REVISION.fullmatch(revision):
        raise ModelLoadError(
            f"{constants.ENDPOINT} lists {outside or revision!r}, expected files inside the repository and a commit: "
            "do not use this server (HF_ENDPOINT)"
        )
    return revision, files


def _is_inside(path: str) -> bool:
    """Whether a path of a listing stays in the folder that it is joined to."""
    parts = path.replace("\\", "/").split("/")
    return not any(part in ("", ".", "..") or part.endswith(":") or "\0" in part for part in parts)


def _wanted(repo: str, files: list[RepoFile], asked: str | None, tell: Tell) -> Model:
    models = models_in(files)
    if not models:
        raise ModelLoadError(
            f"no whole GGUF model among its {len(files)} files: look for one that was converted"
            f"{nearest(f'{repo}-GGUF', _similar(repo))}"
        )
    if asked is None:
        model, why = choose(models, total_memory())
        tell(f"hf:{repo}: {why}")
        return model
    found = find(models, asked)
    if not found:
        names = [model.path for model in models] + [model.quantisation for model in models if model.quantisation]
        raise ModelLoadError(f"no such file among its {len(models)} models{nearest(asked, names)}")
    if len(found) > 1:
        raise ModelLoadError(f"{len(found)} files are {asked}: name one, such as {found[0].path} or {found[1].path}")
    return found[0]


def _checked(repo: str, model: Model, sha256: str) -> Model:
    """The model with the catalogue's sha256 to hold it to."""
    there = model.files[0].sha256
    if there not in (None, sha256):
        raise ModelLoadError(
            f"the Hub has another file now: sha256 {there}, expected {sha256} as the catalogue has it: update pyskip, "
            f"or take it as it is with hf:{repo}:{model.path}"
        )
    return Model((replace(model.files[0], sha256=sha256), *model.files[1:]))


def _reason(repo: str, error: Exception) -> str:
    """One line for what huggingface-hub raised: what was found, and what to do."""
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return _reason(repo, error.__cause__)
    if isinstance(error, OfflineModeIsEnabled) or (isinstance(error, EntryNotFoundError) and is_offline_mode()):
        return f"not in the cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE is set: unset it to download"
    if isinstance(error, GatedRepoError):
        log_in = "the token in use has no access yet" if get_token() else "then `hf auth login`, or set HF_TOKEN"
        return f"gated: accept its terms at {constants.ENDPOINT}/{repo} while logged in there; {log_in}"
    if isinstance(error, RepositoryNotFoundError):
        return f"no such repository, or a private one (`hf auth login`){nearest(repo, _similar(repo))}"
    if isinstance(error, EntryNotFoundError):
        return "the file is not there any more: try again"
    if isinstance(error, HfHubHTTPError):
        return _status(error.response.status_code, error.response.headers.get("retry-after"))
    if isinstance(error, httpx.HTTPError):
        found = " ".join(str(error).split()) or type(error).__name__
        return f"cannot go on with {constants.ENDPOINT} ({found}): check the network; the same command goes on"
    return " ".join(str(error).split())


def _status(code: int, retry_after: str | None) -> str:
    if code == 401:
        return "the Hub does not know the token: log in with `hf auth login`, or correct HF_TOKEN"
    if code == 403:
        return "the token has no right to read this: give it that at the Hub's settings, or use another (HF_TOKEN)"
    if code == 429:
        when = f"in {retry_after} s" if retry_after else "later"
        return f"too many requests: try again {when}; with a token (`hf auth login`, HF_TOKEN) more are allowed"
    return f"{constants.ENDPOINT} answers {code}: try again later"


def _similar(repo: str) -> list[str]:
    """Repositories with GGUF files, of the same owner or with that name in theirs; none if the Hub does not tell."""
    owner, _, name = repo.partition("/")
    try:
        theirs = HfApi().list_models(author=owner, filter="gguf", limit=500)
        return [found.id for found in (*theirs, *HfApi().list_models(search=name, filter="gguf", limit=50))]
    except (httpx.HTTPError, OSError, ValueError, KeyError, TypeError):
        return []


@contextmanager
def _warnings_to(tell: Tell) -> Iterator[None]:
    """What huggingface-hub warns of (a connection that broke, a retry), in one line each, without signed addresses."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tell(" ".join(re.sub(r"\?\S+", "", record.getMessage()).split()))

    logger = logging.getLogger("huggingface_hub")
    before, logger.handlers = logger.handlers, [Handler(logging.WARNING)]
    try:
        yield
    finally:
        logger.handlers = before

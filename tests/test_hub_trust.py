"""What is returned is what was listed and checked: one revision, the right bytes, in the cache's folder."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import hub_server
import pytest
from hub_server import Hub, Repo, error_line, sha256

import pyskip.models.hub
from pyskip.models.verify import NAME, has_sha256

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize(
    "path", ["../../evil-Q4_0.gguf", "/tmp/evil-Q4_0.gguf", "a/../../e.gguf", "..\\e.gguf", "a//e.gguf", "c:/e.gguf"]
)
def test_paths_out_of_the_repository(hub_cli: Run, hub: Hub, path: str) -> None:
    hub.repos["some-one/Tiny-GGUF"].files[path] = b"x"
    for name in ("some-one/Tiny-GGUF", "some-one/Tiny-GGUF:Q8_0"):
        assert "expected files inside the repository" in error_line(hub_cli("pull", name))
    assert not hub.asked("GET", "/content/")


def test_a_drafter_is_not_taken_for_the_model(hub_cli: Run, hub: Hub, tiny: Path) -> None:
    content = tiny.read_bytes()
    hub.repos["some-one/With-Drafter"] = Repo({"main-Q8_0.gguf": content, "mtp-main-Q4_0.gguf": content + b"."})
    assert Path(hub_cli("pull", "some-one/With-Drafter").stdout.strip()).name == "main-Q8_0.gguf"


def test_one_revision(hub_cli: Run, hub: Hub) -> None:
    """Nothing but the list of files is asked of a branch, which may move."""
    done = hub_cli("pull", "some-one/Tiny-GGUF:Q8_0")
    assert done.returncode == 0, done.stderr
    resolved = [path for _, path, _ in hub.requests if "/resolve/" in path]
    assert resolved
    assert all(f"/resolve/{hub_server.COMMIT}/" in path for path in resolved)
    assert hub_server.COMMIT in done.stdout
    assert hub_cli("info", "hf:some-one/Tiny-GGUF:Q8_0", HF_HUB_OFFLINE="1").returncode == 0


def damaged(path: Path) -> None:
    """As long as it was, and another file."""
    blob = path.resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)


def test_a_damaged_blob_is_got_again(hub_cli: Run, hub: Hub, tiny: Path) -> None:
    path = Path(hub_cli("pull", "some-one/Tiny-GGUF:Q8_0").stdout.strip())
    damaged(path)
    done = hub_cli("pull", "some-one/Tiny-GGUF:Q8_0")
    assert "is damaged, and got again" in done.stderr
    assert path.read_bytes() == tiny.read_bytes() + b"Q8_0"


def test_the_catalogue_and_the_cache(
    hub: Hub, hub_env: dict[str, str], hub_cli: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of the catalogue that is in the cache is looked at, too."""
    path = Path(hub_cli("pull", "some-one/Tiny-GGUF:Q8_0").stdout.strip())
    cache = Path(hub_env["HF_HOME"]) / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("pyskip.models.hub.is_offline_mode", lambda: True)
    right = sha256(tiny.read_bytes() + b"Q8_0")
    said: list[str] = []

    def locate(wanted: str) -> Path:
        return pyskip.models.hub.locate("some-one/Tiny-GGUF", path.name, wanted, refresh=False, tell=said.append)

    assert locate(right) == path
    with pytest.raises(pyskip.ModelLoadError, match="not the file of the catalogue"):
        locate("0" * 64)
    damaged(path)
    with pytest.raises(pyskip.ModelLoadError, match="not the file of the catalogue"):
        locate(right)


def test_a_hash_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(b"one")
    assert has_sha256(path, sha256(b"one"), tmp_path)
    assert (tmp_path / NAME).exists()
    assert not has_sha256(path, sha256(b"two"), tmp_path)
    path.write_bytes(b"two")
    assert has_sha256(path, sha256(b"two"), tmp_path)
    (tmp_path / NAME).write_text("no JSON")
    assert has_sha256(path, sha256(b"two"), tmp_path)

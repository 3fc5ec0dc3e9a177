"""Move the pin to another release of llama-cpp-python. `make bump VERSION=x.y.z` calls this, then builds and tests.

    bump.py VERSION

Downloads that release's sdist, checked against the sha256 that the package index states, finds the place of every
hunk of patches/series in its llama.cpp, and rewrites the patches, patches/upstream.toml and the pin in pyproject.toml.
A hunk has its place where all its context stands, to the letter, once. If one has none, nothing is changed and a
line names the patch, the file and the hunk. Every failure is one line on stderr that names the cure, and exit 1.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import upstream
from upstream import Failure

ROOT = Path(__file__).resolve().parent.parent
HUNK = re.compile(r"@@ -\d+(?:,\d+)? \+\d+(?:,\d+)? @@(.*)")


@dataclass(frozen=True)
class Release:
    version: str
    sha256: str
    archive: Path


def download(version: str, sdists: Path) -> Release:
    """The release's sdist in `sdists`, and the sha256 that the index states for it."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--dry-run"]
    pip += ["--ignore-installed", "--no-deps", "--no-build-isolation", "--no-binary", "llama-cpp-python"]
    done = subprocess.run([*pip, "--report", "-", f"llama-cpp-python=={version}"], capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr or done.stdout).strip().splitlines() or ["pip said nothing"]
        raise Failure(
            f"cannot get llama-cpp-python {version} ({reason[-1].strip()}): name a release that "
            "`pip index versions llama-cpp-python` lists, or check the network and pip's index"
        )
    sha256 = json.loads(done.stdout)["install"][0]["download_info"]["archive_info"]["hashes"]["sha256"]
    return Release(version, sha256, upstream.sdist(sdists, {"llama_cpp_python": version, "sha256": sha256}))


def commit(release: Release) -> str:
    """llama.cpp's commit in the release: the newest one that its changelog names, up to its own section."""
    with tarfile.open(release.archive) as tar:
        source = tar.extractfile(f"llama_cpp_python-{release.version}/CHANGELOG.md")
        assert source is not None
        _, own, rest = source.read().decode().partition(f"## [{release.version}]")
    found = re.search(r"llama\.cpp@([0-9a-f]{7,40})", rest)
    if not own or not found:
        raise Failure(f"the changelog of llama-cpp-python {release.version} names no commit of llama.cpp: bump by hand")
    return found[1]


def find(lines: list[str], old: list[str], start: int) -> list[int]:
    return [i for i in range(start, len(lines) - len(old) + 1) if lines[i : i + len(old)] == old]


def place(name: str, patch: str, sources: dict[str, list[str]]) -> str:
    """`patch`, named `name`, with the line numbers that it has in `sources`, to which it is applied."""
    placed, *files = re.split(r"^(?=--- a/)", patch, flags=re.MULTILINE)
    for part in files:
        head, *hunks = re.split(r"^(?=@@ )", part, flags=re.MULTILINE)
        file = head.split("\n")[0].removeprefix("--- a/")
        lines, start, n_added = sources[file], 0, 0
        placed += head
        for number, hunk in enumerate(hunks, 1):
            first, *body = hunk.removesuffix("\n").split("\n")
            old = [line[1:] for line in body if not line.startswith("+")]
            new = [line[1:] for line in body if not line.startswith("-")]
            places = find(lines, old, start)
            if len(places) != 1:
                raise Failure(
                    f"{name} does not apply: hunk {number} of {file} has {len(places)} places there, expected 1; "
                    "nothing was changed: refresh that patch by hand, see docs/upstream.md"
                )
            at = places[0]
            lines[at : at + len(old)] = new
            match = HUNK.match(first)
            section = match[1] if match else ""
            placed += f"@@ -{at + 1 - n_added},{len(old)} +{at + 1},{len(new)} @@{section}\n" + "\n".join([*body, ""])
            start, n_added = at + len(new), n_added + len(new) - len(old)
    return placed


def place_series(release: Release, patches: Path) -> dict[str, str]:
    """Every patch of the series as it is for the release."""
    texts = {name: (patches / name).read_text() for name in (patches / "series").read_text().split()}
    files = sorted({file for text in texts.values() for file in re.findall(r"^--- a/(\S+)", text, re.MULTILINE)})
    with tempfile.TemporaryDirectory() as folder:
        upstream.unpack(release.archive, Path(folder), tuple(files))
        paths = {file: Path(folder) / file for file in files}
        sources = {file: path.read_text().split("\n") if path.is_file() else [] for file, path in paths.items()}
    return {name: place(name, text, sources) for name, text in texts.items()}


def bump(root: Path, release: Release) -> str:
    """Move the tree at `root` to the release, all of it or nothing. Returns the commit."""
    to = commit(release)
    patches = place_series(release, root / "patches")
    pin = root / "patches" / "upstream.toml"
    values = {"llama_cpp_python": release.version, "sha256": release.sha256, "llama_cpp_commit": to}
    changed = {root / "patches" / name: text for name, text in patches.items()}
    changed[pin] = pin.read_text()
    for key, value in values.items():
        changed[pin] = re.sub(rf'^{key} = ".*"', f'{key} = "{value}"', changed[pin], flags=re.MULTILINE)
    project = root / "pyproject.toml"
    changed[project] = re.sub(
        r"llama-cpp-python==[^\"]+", f"llama-cpp-python=={release.version}", project.read_text(), count=1
    )
    for path, text in changed.items():
        if path.read_text() != text:
            path.write_text(text)
    return to


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version")
    version = parser.parse_args().version
    old = upstream.pin()
    try:
        to = bump(ROOT, download(version, ROOT / "build" / "sdist"))
    except (Failure, OSError, tarfile.TarError, KeyError) as error:
        print(f"pyskip: {error}", file=sys.stderr)
        return 1
    print(f"llama-cpp-python {old['llama_cpp_python']} -> {version}, llama.cpp {old['llama_cpp_commit']} -> {to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

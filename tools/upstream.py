"""Put pinned llama.cpp, patched, where CMake builds it. Run by CMakeLists.txt and the Makefile.

    upstream.py sdist --out DIR              download llama-cpp-python's sdist, check its sha256, print its path
    upstream.py tree --sdist DIR --out TREE  unpack llama.cpp from it into TREE and apply patches/series
                    [--patches FILE ...]     or these patches; none with --patches alone
                    [--tests]                and what upstream's own tests are built from
    upstream.py describe                     print the build string of pyskip_build()

Files that would not change are not written, so that a rebuild compiles only what a changed patch touches. Every
failure is one line on stderr that names the cure, and exit 1. Needs patch-ng for `tree`, pip for a download.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

PATCHES = Path(__file__).resolve().parent.parent / "patches"
# What libllama and ggml are built from; the rest of upstream's tree stays in the archive.
PARTS = ("CMakeLists.txt", "LICENSE", "cmake/", "ggml/", "include/", "licenses/", "scripts/", "src/", "vendor/")
# And pyskip's converter of JSON schemas and its server (CMakeLists.txt, cmake/server.cmake).
PARTS += ("common/", "tools/mtmd/", "tools/server/")
TEST_PARTS = ("models/", "tests/")
STAMP = ".pyskip-stamp"


class Failure(Exception):
    """One line: what was found, what was expected, what to do."""


def pin() -> dict[str, str]:
    return tomllib.loads((PATCHES / "upstream.toml").read_text())


def series() -> list[Path]:
    return [PATCHES / name for name in (PATCHES / "series").read_text().split()]


def patches_hash(patches: list[Path]) -> str:
    digest = hashlib.sha256()
    for patch in patches:
        digest.update(patch.name.encode() + b"\0" + patch.read_bytes())
    return digest.hexdigest()[:12]


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sdist(out: Path, release: dict[str, str] | None = None) -> Path:
    """The checked archive in `out`, downloaded with pip if it is not there yet: the pin's, or bump.py's release."""
    release = release or pin()
    version, expected = release["llama_cpp_python"], release["sha256"]
    archive = out / f"llama_cpp_python-{version}.tar.gz"
    if not archive.exists():
        out.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--dest",
            str(out),
        ]
        command += ["--no-binary", "llama-cpp-python", f"llama-cpp-python=={version}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0 or not archive.exists():
            reason = (done.stderr or done.stdout).strip().splitlines() or ["pip said nothing"]
            raise Failure(
                f"cannot download llama-cpp-python {version} ({reason[-1].strip()}): check the network and "
                "pip's index, or set PYSKIP_LLAMA_CPP_DIR to a llama.cpp tree of that release"
            )
    found = sha256(archive)
    if found != expected:
        archive.unlink()
        raise Failure(
            f"{archive.name} has sha256 {found}, expected {expected}: it was removed, run the build again; "
            "if it stays so, the index serves another file than patches/upstream.toml pins"
        )
    return archive


def unpack(archive: Path, to: Path, parts: tuple[str, ...]) -> None:
    with tarfile.open(archive) as tar:
        for member in tar:
            root, _, path = member.name.partition("/vendor/llama.cpp/")
            if member.isfile() and "/" not in root and path.startswith(parts):
                source = tar.extractfile(member)
                assert source is not None
                target = to / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read())


def copy_local(local: Path, to: Path, parts: tuple[str, ...]) -> None:
    if not (local / "src" / "llama-context.cpp").is_file():
        raise Failure(
            f"PYSKIP_LLAMA_CPP_DIR={local} has no src/llama-context.cpp: name the root of a llama.cpp source tree"
        )
    for part in parts:
        source = local / part
        if source.is_dir():
            shutil.copytree(source, to / part, symlinks=False, dirs_exist_ok=True)
        elif source.is_file():
            (to / part).parent.mkdir(exist_ok=True)
            shutil.copy(source, to / part)


def apply_patches(tree: Path, patches: list[Path]) -> None:
    try:
        import patch_ng
    except ModuleNotFoundError:
        raise Failure("the Python package patch-ng is missing: install it with `pip install patch-ng`") from None
    for patch in patches:
        parsed = patch_ng.fromfile(str(patch))
        if not parsed or not parsed.apply(strip=1, root=str(tree), fuzz=False):
            raise Failure(
                f"{patch.name} does not apply to this llama.cpp, expected commit {pin()['llama_cpp_commit']}: "
                "build from the pinned release, or refresh the patch for the tree that PYSKIP_LLAMA_CPP_DIR names"
            )


def sync(source: Path, target: Path) -> None:
    """Make `target` equal to `source`, writing only files that differ."""
    wanted = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    for path in wanted:
        content = (source / path).read_bytes()
        there = target / path
        if not there.is_file() or there.read_bytes() != content:
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_bytes(content)
    for path in list(target.rglob("*")):
        if path.is_file() and path.relative_to(target) not in wanted:
            path.unlink()


def tree(sdist_dir: Path, out: Path, patches: list[Path], parts: tuple[str, ...] = PARTS) -> None:
    local = os.environ.get("PYSKIP_LLAMA_CPP_DIR")
    origin = f"local {Path(local).resolve()}" if local else f"sdist {pin()['sha256']}"
    stamp = f"{origin}\npatches {patches_hash(patches)}\nparts {' '.join(parts)}\n"
    stamp_file = out / STAMP
    if not local and stamp_file.is_file() and stamp_file.read_text() == stamp:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as name:
        fresh = Path(name) / "llama.cpp"
        fresh.mkdir()
        if local:
            copy_local(Path(local), fresh, parts)
        else:
            unpack(sdist(sdist_dir), fresh, parts)
        if patches:
            apply_patches(fresh, patches)
        (fresh / STAMP).write_text(stamp)
        sync(fresh, out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("sdist")
    command.add_argument("--out", type=Path, required=True)
    command = commands.add_parser("tree")
    command.add_argument("--sdist", type=Path, required=True)
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--patches", type=Path, nargs="*")
    command.add_argument("--tests", action="store_true")
    commands.add_parser("describe")
    args = parser.parse_args()
    try:
        if args.command == "sdist":
            print(sdist(args.out))
        elif args.command == "tree":
            parts = PARTS + TEST_PARTS if args.tests else PARTS
            tree(args.sdist, args.out, series() if args.patches is None else args.patches, parts)
        else:
            release, commit = pin()["llama_cpp_python"], pin()["llama_cpp_commit"]
            print(f"llama-cpp-python {release}, llama.cpp {commit}, patches {patches_hash(series())}")
    except (Failure, OSError, tarfile.TarError) as error:
        print(f"pyskip: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

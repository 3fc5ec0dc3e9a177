"""Wheels: what tools/wheel.py promises of them, and those in dist/ if `make wheel` has built some. None is built or
installed here; `make wheel-test` and `make wheel-aarch64-test` do that. What needs no llama.cpp is run on ARM, where
Debian's cross-compiler and emulator are there."""

import base64
import ctypes
import hashlib
import importlib.metadata
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from conftest import ROOT, tool
from packaging.requirements import Requirement
from packaging.tags import parse_tag
from packaging.utils import parse_wheel_filename
from packaging.version import Version

from pyskip import BuildMismatchError
from pyskip.binding import library
from pyskip.binding.files import library_file

# Of native/src, what needs no ggml and has a native test of its own.
PURE = ("census", "draft-plan", "hold", "pace", "policy", "sequences")
WHEELS = sorted((ROOT / "dist").glob("pyskip-*.whl"))
CROSS = ("aarch64-linux-gnu-g++", "qemu-aarch64-static")
NAME = "pyskip-0.1.0-cp310-abi3-{platform}.whl"


@pytest.fixture(scope="module")
def wheel() -> ModuleType:
    found = tool("wheel")
    sys.modules.pop("wheel")  # the name of a package, too
    return found


def sdist(folder: Path, files: dict[str, str], version: str = "9.9.9") -> Path:
    path = folder / f"llama_cpp_python-{version}.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(f"llama_cpp_python-{version}/{name}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return path


SDIST = {
    "PKG-INFO": "Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: 9.9.9\n\nVersion: 9.9.9\n",
    "LICENSE.md": "MIT",
    "llama_cpp/__init__.py": "__version__ = '9.9.9'\n",
    "llama_cpp/py.typed": "",
    "llama_cpp/server/app.py": "",
    "llama_cpp/lib/libllama.so": "not this",
    "vendor/llama.cpp/llama_cpp/no.py": "not this",
    "setup.py": "not this",
}


def test_companion(wheel: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "llama_cpp_python-9.9.8+pyskip-py3-none-any.whl").touch()
    path = wheel.companion(sdist(tmp_path, SDIST), "9.9.9", tmp_path)
    project, version, _, tags = parse_wheel_filename(path.name)
    assert (project, version, tags) == ("llama-cpp-python", Version("9.9.9+pyskip"), parse_tag("py3-none-any"))
    assert [path] == list(tmp_path.glob("*.whl"))  # an older one would be installed for another pin
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    info = "llama_cpp_python-9.9.9+pyskip.dist-info"
    assert set(files) == {
        "llama_cpp/__init__.py", "llama_cpp/py.typed", "llama_cpp/server/app.py",
        f"{info}/METADATA", f"{info}/WHEEL", f"{info}/RECORD", f"{info}/licenses/LICENSE.md",
    }  # fmt: skip
    metadata = Parser().parsestr(files[f"{info}/METADATA"].decode())
    assert metadata["Version"] == "9.9.9+pyskip"
    assert metadata.get_payload() == "Version: 9.9.9\n"
    recorded = [line.split(",") for line in files[f"{info}/RECORD"].decode().splitlines()]
    assert {name for name, *_ in recorded} == set(files)
    for name, digest, size in recorded:
        data = files[name]
        sha256 = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        assert (digest, size) == (("", "") if name.endswith("RECORD") else (f"sha256={sha256}", str(len(data))))


def test_companion_is_the_same_every_time(wheel: ModuleType, tmp_path: Path) -> None:
    first = wheel.companion(sdist(tmp_path, SDIST), "9.9.9", tmp_path / "a").read_bytes()
    assert wheel.companion(sdist(tmp_path, SDIST), "9.9.9", tmp_path / "b").read_bytes() == first


@pytest.mark.parametrize("missing", ["PKG-INFO", "LICENSE.md", "llama_cpp/__init__.py"])
def test_companion_of_an_incomplete_sdist(wheel: ModuleType, tmp_path: Path, missing: str) -> None:
    files = {name: text for name, text in SDIST.items() if name != missing}
    with pytest.raises(wheel.Failure, match="has nothing for"):
        wheel.companion(sdist(tmp_path, files), "9.9.9", tmp_path)
    assert not list(tmp_path.glob("*.whl"))


def test_companion_of_another_version(wheel: ModuleType, tmp_path: Path) -> None:
    files = {**SDIST, "PKG-INFO": SDIST["PKG-INFO"].replace("Version: 9.9.9\n\n", "Version: 9.9.8\n\n")}
    with pytest.raises(wheel.Failure, match=r"does not state Version: 9\.9\.9"):
        wheel.companion(sdist(tmp_path, files), "9.9.9", tmp_path)


def test_companion_of_the_pin_is_what_is_installed(wheel: ModuleType, tmp_path: Path) -> None:
    """The same files as upstream's own build backend takes, and a version that pyskip's requirement accepts."""
    version = wheel.upstream.pin()["llama_cpp_python"]
    path = wheel.companion(wheel.upstream.sdist(ROOT / "build" / "sdist"), version, tmp_path)
    with zipfile.ZipFile(path) as archive:
        packed = {name: archive.read(name) for name in archive.namelist() if name.startswith("llama_cpp/")}
    installed = importlib.metadata.distribution("llama-cpp-python")
    files = {
        str(file): Path(str(file.locate())).read_bytes() for file in installed.files or () if file.suffix != ".pyc"
    }
    assert packed == {name: data for name, data in files.items() if name.startswith("llama_cpp/")}
    requirements = [Requirement(line) for line in importlib.metadata.requires("pyskip") or ()]
    (pinned,) = [requirement for requirement in requirements if requirement.name == "llama-cpp-python"]
    assert pinned.specifier.contains(parse_wheel_filename(path.name)[1])


HEADS = {
    "manylinux_2_35_x86_64": b"\x7fELF" + bytes(14) + b"\x3e\0",
    "manylinux_2_28_aarch64": b"\x7fELF" + bytes(14) + b"\xb7\0",
    "musllinux_1_2_x86_64": b"\x7fELF" + bytes(14) + b"\x3e\0",
    "win_amd64": b"MZ" + bytes(90) + b"PE\0\0\x64\x86",
    "win_arm64": b"MZ" + bytes(90) + b"PE\0\0\x64\xaa",
    "macosx_11_0_arm64": b"\xcf\xfa\xed\xfe\x0c\0\0\x01",
    "macosx_11_0_x86_64": b"\xcf\xfa\xed\xfe\x07\0\0\x01",
}


def make_wheel(wheel: ModuleType, folder: Path, platform: str, *, without: str = "", head: bytes = b"") -> Path:
    """One that has what a wheel of this platform promises."""
    (names,) = [
        system.files(arch)
        for system in wheel.SYSTEMS
        for arch in system.machines
        if re.fullmatch(system.tag.format(arch=arch), platform)
    ]
    path = folder / NAME.format(platform=platform)
    with zipfile.ZipFile(path, "w") as archive:
        for name in names - {without}:
            archive.writestr(f"pyskip/{name}", head or HEADS[platform])
        if "linux" in platform:
            archive.writestr("pyskip.libs/libgomp-0123abcd.so.1.0.0", HEADS[platform])
        archive.writestr("pyskip/__init__.py", "")
    return path


@pytest.mark.parametrize("platform", HEADS)
def test_check(wheel: ModuleType, tmp_path: Path, platform: str) -> None:
    arch = wheel.check(make_wheel(wheel, tmp_path, platform))
    assert platform.endswith(f"_{arch}")


@pytest.mark.parametrize(
    ("platform", "without"),
    [
        ("manylinux_2_35_x86_64", "lib/libggml-cpu-haswell.so"),
        ("macosx_11_0_arm64", "lib/libggml-cpu-apple_m1.so"),
        ("macosx_11_0_arm64", "lib/libllama.dylib"),
        ("win_amd64", "lib/ggml-cpu-zen4.dll"),
        ("win_amd64", "_native.pyd"),
        ("win_arm64", "lib/ggml-cpu.dll"),
        ("win_arm64", "lib/pyskip-server.exe"),
    ],
)
def test_check_misses_a_file(wheel: ModuleType, tmp_path: Path, platform: str, without: str) -> None:
    path = make_wheel(wheel, tmp_path, platform, without=without)
    with pytest.raises(wheel.Failure, match=rf"has no pyskip/{re.escape(without)}: build with PYSKIP_PORTABLE=ON"):
        wheel.check(path)


@pytest.mark.parametrize(
    ("platform", "other"),
    [
        ("manylinux_2_28_aarch64", "manylinux_2_35_x86_64"),
        ("win_arm64", "win_amd64"),
        ("macosx_11_0_x86_64", "macosx_11_0_arm64"),
        ("macosx_11_0_x86_64", "manylinux_2_35_x86_64"),
    ],
)
def test_check_finds_another_machine(wheel: ModuleType, tmp_path: Path, platform: str, other: str) -> None:
    path = make_wheel(wheel, tmp_path, platform, head=HEADS[other])
    with pytest.raises(wheel.Failure, match="another system's or processor's"):
        wheel.check(path)


@pytest.mark.parametrize(
    "name",
    [
        "pyskip-0.1.0-cp310-abi3-linux_x86_64.whl",
        "pyskip-0.1.0-cp311-cp311-manylinux_2_35_x86_64.whl",
        "pyskip-0.1.0-cp310-abi3-manylinux_2_35_other.whl",
        "pyskip-0.1.0-cp310-abi3-macosx_14_0_arm64.whl",
        "pyskip-0.1.0-cp310-abi3-win32.whl",
    ],
)
def test_check_finds_another_name(wheel: ModuleType, tmp_path: Path, name: str) -> None:
    path = make_wheel(wheel, tmp_path, "manylinux_2_35_x86_64").rename(tmp_path / name)
    with pytest.raises(wheel.Failure, match="expected pyskip-VERSION-cp310-abi3-PLATFORM"):
        wheel.check(path)


@pytest.mark.parametrize("platform", ["win_amd64", "macosx_11_0_x86_64"])
def test_repair_of_what_needs_none(
    wheel: ModuleType, tmp_path: Path, platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the place of an older one of its platform, and of no other."""
    monkeypatch.setattr(wheel, "BUILD", tmp_path / "build")
    (tmp_path / "dist").mkdir()
    old = [tmp_path / "dist" / f"pyskip-0.0.1-cp310-abi3-{tag}.whl" for tag in ("manylinux_2_35_x86_64", platform)]
    for path in old:
        path.touch()
    made = wheel.repair(make_wheel(wheel, tmp_path, platform), tmp_path / "dist")
    assert sorted((tmp_path / "dist").iterdir()) == sorted([old[0], made])


def test_no_cross_compiler(wheel: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(wheel, "BUILD", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(wheel.Failure, match=r"expected aarch64-linux-gnu-g\+\+: install it"):
        wheel.build("aarch64", tmp_path / "dist")


def test_back_ends_are_upstreams(wheel: ModuleType) -> None:
    """A release with another back end must change BACKENDS."""
    text = (ROOT / "build" / "upstream" / "patched" / "ggml" / "src" / "CMakeLists.txt").read_text()
    names = re.findall(r"^ +ggml_add_cpu_backend_variant\(([\w.]+)", text, re.MULTILINE)
    assert wheel.BACKENDS["x86_64"].split() == names[: names.index("armv8.0_1")]
    assert wheel.BACKENDS["aarch64"].split() == [name for name in names if name.startswith("armv8")]
    assert wheel.BACKENDS["apple"].split() == [name for name in names if name.startswith("apple")]


needs_arm = pytest.mark.skipif(
    not all(map(shutil.which, CROSS)), reason="apt-get install g++-aarch64-linux-gnu qemu-user-static: not installed"
)


def compile_for_arm(source: Path, out: Path, *more: str | Path) -> Path:
    folders = [f"-I{ROOT / 'native' / folder}" for folder in ("include", "src")]
    subprocess.run([CROSS[0], "-std=c++17", "-static", *folders, source, *more, "-o", out], check=True)
    return out


@pytest.fixture(scope="module")
def arm_objects(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("arm")
    names = (*PURE, "row")
    return [compile_for_arm(ROOT / "native" / "src" / f"{name}.cpp", folder / f"{name}.o", "-c") for name in names]


@needs_arm
@pytest.mark.parametrize("name", PURE)
def test_on_arm_processors(tmp_path: Path, arm_objects: list[Path], name: str) -> None:
    """The Raspberry Pi 3, 4 and 5, and all that QEMU knows."""
    program = compile_for_arm(ROOT / "native" / "tests" / f"test-{name}.cpp", tmp_path / name, *arm_objects)
    for cpu in ("cortex-a53", "cortex-a72", "cortex-a76", "max"):
        done = subprocess.run([CROSS[1], "-cpu", cpu, program], capture_output=True, text=True)
        assert (done.returncode, done.stdout.removeprefix("test-")) == (0, f"{name}: passed\n"), done.stderr


@pytest.mark.skipif(not WHEELS, reason="`make wheel` builds what is looked at here")
@pytest.mark.parametrize("path", WHEELS, ids=lambda path: path.name)
def test_built_wheel(wheel: ModuleType, path: Path) -> None:
    wheel.check(path)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        (metadata,) = [archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA")]
    assert {"pyskip/lib/LICENSE.llama.cpp", "pyskip/lib/NOTICE", "pyskip/catalog.toml", "pyskip/py.typed"} <= set(names)
    assert any(re.fullmatch(r"pyskip/profiles/.*\.skip\.gguf", name) for name in names)
    assert any(re.fullmatch(r"pyskip-[^/]+\.dist-info/licenses/LICENSE", name) for name in names)
    assert not [name for name in names if not name.startswith(("pyskip/", "pyskip.libs/", "pyskip-"))]
    assert f"Requires-Dist: llama-cpp-python=={wheel.upstream.pin()['llama_cpp_python']}" in metadata.splitlines()
    assert path.stat().st_size < 25_000_000


# Besides its own files and, on Linux, the C library's and the compiler's, which the tag names.
SYSTEM_HAS = (
    r"(lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+)\.so.*|ld-linux.*|/usr/lib/lib(System\.B|c\+\+\.1)\.dylib)|python3\.dll"
)
WINDOWS_HAS = r"(kernel32|advapi32|msvcrt|shell32|ws2_32|ntdll|bcrypt|user32|ole32|api-ms-win-crt-.*)\.dll"


@pytest.mark.skipif(not WHEELS, reason="`make wheel` builds what is looked at here")
@pytest.mark.parametrize("path", WHEELS, ids=lambda path: path.name)
def test_built_wheel_needs_nothing_else(wheel: ModuleType, tmp_path: Path, path: Path) -> None:
    """What a library is linked with is in the wheel, or the system's; no folder of this machine is looked in."""
    binary = tool("binary")
    if not binary.available():
        pytest.skip("llvm is not installed")
    with zipfile.ZipFile(path) as archive:
        files = [
            name for name in archive.namelist() if re.search(r"\.(so[.\d]*|dll|pyd|dylib|exe)$|/pyskip-server$", name)
        ]
        archive.extractall(tmp_path, files)
    own = {Path(name).name for name in files}
    assert len(own) > 5
    for name in files:
        found = binary.inspect(tmp_path / name)
        others = {need for need in found.needs if need.removeprefix("@rpath/") not in own}
        assert {
            need for need in others if not re.fullmatch(f"{SYSTEM_HAS}|{WINDOWS_HAS}", need, re.IGNORECASE)
        } == set(), name
        # or a process would take another back end's, of those that it asks for their score (tests/test_cross.py)
        assert not [name for name in found.exports if "pyskip_cpu" in name], name
        folders = {folder for paths in found.looks_in for folder in paths.split(":")}
        assert all(folder.startswith(("$ORIGIN", "@loader_path")) for folder in folders), name


def test_list_of_what_is_in_it(wheel: ModuleType) -> None:
    """CycloneDX, valid by its own schema: the pin, with its hash, and the libraries that llama.cpp brings."""
    pytest.importorskip("cyclonedx")
    sbom = tool("sbom")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    pin = wheel.upstream.pin()
    found = sbom.versions(wheel.upstream.sdist(ROOT / "build" / "sdist"))
    project = {"version": "0.1.0", "dependencies": [f"llama-cpp-python=={pin['llama_cpp_python']}", "numpy>=1.24"]}
    text = sbom.document(project, pin, found)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    components = {one["name"]: one for one in json.loads(text)["components"]}
    assert set(components) == {"llama-cpp-python", "llama.cpp", "numpy", *(part.name for part in sbom.PARTS)}
    assert components["llama-cpp-python"]["hashes"] == [{"alg": "SHA-256", "content": pin["sha256"]}]
    assert components["llama.cpp"]["version"] == pin["llama_cpp_commit"]
    assert all(re.fullmatch(r"\d+(\.\d+)+", version) for version in found.values())


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the effect on the log of this process."""
    monkeypatch.setattr(library, "lib", SimpleNamespace(pyskip_log_drop=lambda: None))


class Ggml:
    """libggml without a back end of its own, in a folder where `n` of them run."""

    def __init__(self, n: int) -> None:
        self.n, self.count = n, 0
        self.folders: list[bytes | None] = []

    def ggml_backend_dev_count(self) -> int:
        return self.count

    def ggml_backend_load_all_from_path(self, folder: ctypes.c_char_p) -> None:
        self.folders.append(folder.value)
        self.count += self.n


@pytest.mark.usefixtures("quiet")
def test_back_ends_are_loaded_from_beside_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ggml = Ggml(1)
    monkeypatch.setattr(ctypes, "CDLL", {str(library_file(tmp_path, "ggml")): ggml}.__getitem__)
    library._load_backends(tmp_path)
    library._load_backends(tmp_path)  # by now there is one
    assert ggml.folders == [str(tmp_path).encode()]


@pytest.mark.usefixtures("quiet")
def test_no_back_end_runs_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda path: Ggml(0))
    with pytest.raises(BuildMismatchError, match=r"no back end \(ggml-cpu-\*\) in .* runs on this processor: install"):
        library._load_backends(tmp_path)

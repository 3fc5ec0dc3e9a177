"""Any bytes as a profile: a ProfileError of one line that names the field, before anything is allocated for it; and a
profile that cannot be written leaves the old one as it was."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from conftest import TEST_PATH, make_profile

import pyskip
from pyskip.calibration.write import LayerFit, Provenance, write_profile
from pyskip.models.profile import Point, Profile

N_EMBD = 64
PROVENANCE = Provenance("m", "fnv1a64:0", "linear", "made up", "none", "", 0, 4, "test")
CURVE = [Point(0.1, -1.0, 1.01, 0.001, 0.01, 0.09, 1.05), Point(0.3, 0.0, 1.1, 0.01, 0.1, 0.27, 1.2)]


def layer(**matrices: npt.NDArray[np.float32]) -> LayerFit:
    return LayerFit(np.ones(N_EMBD + 2, np.float32), np.ones(N_EMBD, np.float32), {**matrices})


def full() -> LayerFit:
    return layer(skip_up=np.ones((N_EMBD, N_EMBD), np.float32))


def refused(path: Path, match: str) -> None:
    with pytest.raises(pyskip.ProfileError, match=match) as caught:
        Profile(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    path = tmp_path / "sound.skip.gguf"
    write_profile(path, [full(), None, full()], CURVE, 1, PROVENANCE, "F32")
    return path


def test_what_is_written_is_read(sound: Path) -> None:
    profile = Profile(sound)
    assert (profile.n_layer, profile.n_embd, profile.warmup, profile.rank) == (3, N_EMBD, 4, N_EMBD)
    assert (profile.fingerprint, profile.stand_in, profile.method) == ("fnv1a64:0", "linear", "made up")
    assert profile.curve == tuple(
        Point(*(float(np.float32(getattr(p, name))) for name in Point.__dataclass_fields__)) for p in CURVE
    )
    assert profile.recommended == profile.curve[1]
    assert profile.stand_in_bytes == (4 * N_EMBD * (N_EMBD + 1), 0, 4 * N_EMBD * (N_EMBD + 1))
    assert profile.gate_bytes == (4 * (N_EMBD + 2), 0, 4 * (N_EMBD + 2))


BROKEN: dict[str, tuple[list[LayerFit | None], dict[str, object], str]] = {
    "no layer": ([layer(), None], {"stand_in": "linear"}, r"blk\.0\.skip_up\.weight: found none"),
    "rank": ([layer(skip_up=np.ones((N_EMBD, 8), np.float32))], {}, r"blk\.0\.skip_up\.weight: found f32 \[8, 64"),
    "half": (
        [layer(skip_down=np.ones((8, N_EMBD), np.float32), skip_up=np.ones((N_EMBD, 16), np.float32))],
        {},
        r"skip_up\.weight: found f32 \[16, 64",
    ),
    "kind": ([full()], {"stand_in": "cubic"}, r"pyskip\.stand_in: found cubic"),
    "other kind": ([full()], {"stand_in": "gated"}, r"skip_gate_up\.weight or \.skip_down\.weight: found none"),
    "activation": ([full()], {"stand_in": "gated", "activation": "cubic"}, r"pyskip\.activation: found cubic"),
    "none with": ([full()], {"stand_in": "none"}, r"tensors: found 3, expected 2"),
    "nan": ([replace(full(), gate=np.full(N_EMBD + 2, np.nan, np.float32))], {}, r"skip_gate\.weight: .* not finite"),
    "inf": ([layer(skip_up=np.full((N_EMBD, N_EMBD), np.inf, np.float32))], {}, r"skip_up\.weight: .* not finite"),
    "gate": ([replace(full(), gate=np.ones(N_EMBD, np.float32))], {}, r"skip_gate\.weight: found f32 \[64, 1"),
    "bias": ([full(), replace(full(), bias=np.ones(3, np.float32))], {}, r"blk\.1\.skip\.bias: found f32 \[3"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_tensors_that_do_not_fit(tmp_path: Path, name: str) -> None:
    layers, provenance, match = BROKEN[name]
    path = tmp_path / "broken.skip.gguf"
    write_profile(path, layers, CURVE, 0, replace(PROVENANCE, **provenance), "F32")  # type: ignore[arg-type]
    refused(path, match)


@pytest.mark.parametrize(
    ("points", "recommended", "match"),
    [
        ([], 0, r"pyskip\.curve\.rate"),
        ([replace(CURVE[0], rate=1.5)], 0, r"pyskip\.curve\.rate: found 1\.5"),
        ([replace(CURVE[0], threshold=float("nan"))], 0, r"pyskip\.curve\.threshold: found nan"),
        ([CURVE[1], CURVE[0]], 0, r"pyskip\.curve\.rate: found a rate that is no higher"),
        ([CURVE[0], replace(CURVE[1], threshold=-5.0)], 0, r"pyskip\.curve\.threshold: found a threshold below"),
        ([replace(CURVE[0], ppl_ratio=float("inf"))], 0, r"pyskip\.curve\.ppl_ratio: found inf"),
        (CURVE, 2, r"pyskip\.recommended: found 2, expected 0 to 1"),
    ],
)
def test_curves_that_are_none(tmp_path: Path, points: list[Point], recommended: int, match: str) -> None:
    path = tmp_path / "broken.skip.gguf"
    write_profile(path, [full()], points, recommended, PROVENANCE, "F32")
    refused(path, match)


def test_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "other.skip.gguf"
    for version in (0, 4):
        monkeypatch.setattr("pyskip.calibration.write.PROFILE_VERSION", version)
        write_profile(path, [full()], CURVE, 0, PROVENANCE)
        refused(path, rf"pyskip\.profile_version: found {version}, expected 1 to 3")
    for version in (1, 2):
        monkeypatch.setattr("pyskip.calibration.write.PROFILE_VERSION", version)
        write_profile(path, [full()], CURVE, 0, PROVENANCE)
        assert len(Profile(path).curve) == len(CURVE)


def test_files_that_are_no_profile(tmp_path: Path, tiny: Path) -> None:
    refused(tmp_path / "missing", "no such file")
    refused(tmp_path, "is a directory")
    refused(tiny, r"general\.architecture: found llama, expected pyskip")
    zeros = tmp_path / "zeros"
    with zeros.open("wb") as file:
        file.truncate(2 << 30)
    refused(zeros, "does not start with GGUF")
    headed = tmp_path / "headed"
    with headed.open("wb") as file:
        file.write(b"GGUF")
        file.truncate(2 << 30)
    refused(headed, "GGUF header")


def test_every_truncation_is_refused(sound: Path, tmp_path: Path) -> None:
    whole, cut = sound.read_bytes(), tmp_path / "cut.skip.gguf"
    for n in [*range(0, 200), *range(200, len(whole) - 64, 997)]:
        cut.write_bytes(whole[:n])
        refused(cut, ".")


@pytest.mark.slow
def test_flipped_bits_are_refused_or_harmless(sound: Path, tmp_path: Path) -> None:
    """One bit in every byte of the header, and in some of the weights."""
    whole, flipped = sound.read_bytes(), tmp_path / "flipped.skip.gguf"
    n_header = len(whole) - gguf.GGUFReader(sound).tensors[-1].n_bytes * 2
    rng = np.random.default_rng(1)
    n_refused = 0
    for at in [*range(min(n_header, 2500)), *rng.integers(0, len(whole), 300).tolist()]:
        data = bytearray(whole)
        data[at] ^= 1 << int(rng.integers(8))
        flipped.write_bytes(data)
        reason = ""
        try:
            Profile(flipped)
        except pyskip.ProfileError as error:
            reason = str(error)
        assert "\n" not in reason
        n_refused += bool(reason)
    assert n_refused > 300


def test_a_damaged_profile_is_one_line_at_the_command_line(
    cli: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, tiny: Path
) -> None:
    profile = tmp_path / "p.skip.gguf"
    make_profile.make_profile(tiny, profile)
    data = bytearray(profile.read_bytes())
    profile.write_bytes(data[:-100])
    result = cli("generate", str(tiny), "-p", "a", "-n", "2", "--skip", "0.25", "--profile", str(profile))
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "expected" in result.stderr


# Writing


def test_a_target_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(pyskip.ProfileError, match="cannot be written"):
        write_profile(tmp_path / "no" / "p.skip.gguf", [full()], CURVE, 0, PROVENANCE)


def test_a_full_disk_leaves_the_old_file(sound: Path) -> None:
    """RLIMIT_FSIZE, in a process of its own, fails writes as a full disk does."""
    before = sound.read_bytes()
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]; import test_profile_files as t\n"
        "from pathlib import Path\n"
        "try: t.write_profile(Path(sys.argv[1]), [t.full()] * 3, t.CURVE, 0, t.PROVENANCE, 'F32')\n"
        "except t.pyskip.ProfileError as e: print(e)"
    )

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    result = subprocess.run(
        [sys.executable, "-B", "-c", code, str(sound), *TEST_PATH],
        preexec_fn=limit, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "cannot be written" in result.stdout, result.stderr
    assert result.stdout.count("\n") == 1
    assert sound.read_bytes() == before
    assert [p.name for p in sound.parent.iterdir()] == [sound.name]

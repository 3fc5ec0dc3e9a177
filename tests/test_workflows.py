"""The workflows that build, try and publish wheels: by their schema, by a linter that looks for what an attacker would,
and for what this project holds to. They cannot be run here."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SYSTEMS = {"manylinux_x86_64", "manylinux_aarch64", "musllinux_x86_64", "musllinux_aarch64"}
SYSTEMS |= {"win_amd64", "win_arm64", "macosx_arm64", "macosx_x86_64"}


def load(name: str) -> dict[str, Any]:
    document = yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text("utf-8"))
    return {"on" if key is True else key: value for key, value in document.items()}  # YAML 1.1 reads `on` as true


def test_there_are_some() -> None:
    assert [path.name for path in WORKFLOWS] == ["test.yml", "wheels.yml"]


@pytest.mark.slow
def test_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    done = subprocess.run([*command, *map(str, WORKFLOWS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not shutil.which("zizmor", path=Path(sys.executable).parent), reason="extra dev: zizmor")
def test_nothing_an_attacker_could_use() -> None:
    zizmor = str(Path(sys.executable).parent / "zizmor")
    command = [zizmor, "--offline", "--no-progress", "--config", str(ROOT / ".github" / "zizmor.yml")]
    done = subprocess.run([*command, *map(str, WORKFLOWS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_job_may_do_what_it_is_for(path: Path) -> None:
    workflow = load(path.name)
    assert workflow["permissions"] == {}
    for name, job in workflow["jobs"].items():
        allowed = {"publish": {"id-token": "write", "attestations": "write"}, "release": {"contents": "write"}}
        assert job["permissions"] == allowed.get(name, {"contents": "read"}), name
        assert job["timeout-minutes"] <= 180


def test_a_wheel_for_every_system() -> None:
    jobs = load("wheels.yml")["jobs"]
    built = [one["build"] for one in jobs["wheel"]["strategy"]["matrix"]["include"]]
    assert {name.removeprefix("cp311-") for name in built} == SYSTEMS
    assert len(built) == len(set(built))
    config = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["cibuildwheel"]
    patterns = [re.compile(text.replace("*", ".*")) for text in config["build"].split()]
    assert all(any(pattern.fullmatch(name) for pattern in patterns) for name in built)
    assert "companion" not in jobs["publish"]["steps"][0]["with"]["pattern"]  # which no index takes: a release has it


def test_only_a_tag_publishes() -> None:
    workflow = load("wheels.yml")
    assert workflow["on"]["push"] == {"tags": ["v*"]}
    publish, release = workflow["jobs"]["publish"], workflow["jobs"]["release"]
    assert publish["if"] == "github.event_name == 'push'"
    assert {"wheel", "source", "list"} <= set(publish["needs"])
    assert release["needs"] == ["publish"]
    text = (ROOT / ".github" / "workflows" / "wheels.yml").read_text("utf-8")
    assert not re.search(r"secrets\.", text)

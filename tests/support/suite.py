"""A suite of upstream's in pytest, run twice: what run on upstream's own side passes must pass on pyskip's."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["Outcomes", "outcomes", "report", "unpack"]

ROOT = Path(__file__).resolve().parent.parent.parent
Outcomes = dict[str, str]  # by test: passed, failed or skipped


def unpack(there: str, folder: Path) -> None:
    """What lies below `there` in the pinned sdist, or is that file, into the folder."""
    command = [sys.executable, str(ROOT / "tools" / "upstream.py"), "sdist", "--out", str(ROOT / "build" / "sdist")]
    sdist = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    with tarfile.open(sdist) as tar:
        for member in tar:
            _, _, inside = member.name.partition("/")  # the release's own folder
            source = tar.extractfile(member) if inside.startswith(there) and member.isfile() else None
            if source is not None:
                path = inside.removeprefix(there) or Path(inside).name
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(source.read())


def outcomes(folder: Path, side: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Outcomes:
    """Run pytest in the folder. What it printed is kept there, in SIDE.txt."""
    xml = folder / f"{side}.xml"
    xml.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "--continue-on-collection-errors", "--junitxml", str(xml), *arguments]
    with (folder / f"{side}.txt").open("w") as log:
        done = subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    if not xml.is_file():
        raise RuntimeError(f"pytest ended with {done.returncode} and no results: see {log.name}")
    found = {}
    for case in ElementTree.parse(xml).iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        found[f"{case.get('classname', '')}.{case.get('name')}"] = outcome
    return found


def report(theirs: Outcomes, ours: Outcomes, differs: Mapping[str, str], both_must_pass: bool = False) -> int:
    """Prints what came of it. Returns 1 if ours fails what theirs passes, or anything if both must pass; but for what
    `differs` has, by the beginning of a test's name, with the reason."""
    for kind in ("passed", "failed", "skipped"):
        counts = [sum(outcome == kind for outcome in found.values()) for found in (theirs, ours)]
        print(f"{kind}: {counts[0]} unpatched, {counts[1]} pyskip's")
    status = 0
    for name in sorted(theirs.keys() | ours.keys()):
        is_worse = theirs.get(name) == "passed"
        if ours.get(name) == "passed" or not (is_worse or both_must_pass):
            continue
        reason = next((why for start, why in differs.items() if name.startswith(start)), None)
        if reason is None:
            status = 1
            print(f"{'worse' if is_worse else 'passes on neither side'}: {name}", file=sys.stderr)
        else:
            print(f"otherwise, as meant: {name} ({reason})")
    return status

"""Upstream's own tests of its server, on unpatched llama-server and on pyskip's: `make upstream-server-test`.

    server.py [-k EXPRESSION]

What passes unpatched must pass on pyskip's, but for DIFFERS. The models that the tests would download are one tiny
random model; tests that need what it cannot do (embeddings of BERT, images) are skipped on both, and what looks for a
certain text fails on both. Exit 1 if pyskip's fails what upstream's does not.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT / "tools" / "models"))
import make_random  # noqa: E402

from pyskip.server.program import program  # noqa: E402

BUILD = ROOT / "build" / "upstream-server"
HERE = "/vendor/llama.cpp/tools/server/tests/"

# Meant to be otherwise, by the beginning of a test's name.
DIFFERS = {
    "test_tools_builtin": "tools that open the machine are refused",
    "test_mcp_servers": "so are MCP servers",
    "test_proxy": "and proxies",
    "test_security.test_cors": "pages of other origins may not ask",
    "test_compat_anthropic.test_anthropic_tool_result_with_image": "images that a model cannot see are a 400, no 500",
    "test_compat_anthropic.test_anthropic_vision_format_accepted": "the same",
    "test_sleep.test_server_sleep_read_only_endpoints": "metrics count requests, those for metrics too",
}

PLUGIN = """
import os, sys, types
sys.modules.setdefault("wget", types.ModuleType("wget"))
import pytest, utils

def local(make):
    def preset():
        server = make()
        server.model_hf_repo = server.model_hf_file = None
        server.model_file, server.offline = os.environ["PYSKIP_TEST_MODEL"], True
        return server
    return staticmethod(preset)

def missing(name):
    def preset():
        pytest.skip(f"{name} is downloaded")
    return staticmethod(preset)

preset = utils.ServerPreset
for name in ("tinyllama2", "tinyllama_infill", "stories15m_moe"):
    setattr(preset, name, local(getattr(preset, name)))
for name in ("bert_bge_small", "bert_bge_small_with_fa", "jina_reranker_tiny", "tinygemma3"):
    setattr(preset, name, missing(name))
preset.load_all = staticmethod(lambda: None)
"""


def unpack(folder: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "upstream.py"), "sdist", "--out", str(ROOT / "build" / "sdist")]
    sdist = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    with tarfile.open(sdist) as tar:
        for member in tar:
            _, _, path = member.name.partition(HERE)
            source = tar.extractfile(member) if path and member.isfile() else None
            if source is not None:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(source.read())
    (folder / "offline_models.py").write_text(PLUGIN)


def outcomes(binary: Path, folder: Path, model: Path, more: list[str]) -> dict[str, str]:
    """By test: passed, failed or skipped."""
    report = folder / f"{binary.name}.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "offline_models", "--continue-on-collection-errors"]
    command += ["--junitxml", str(report), "unit", *more]
    env = {
        **os.environ,
        "LLAMA_SERVER_BIN_PATH": str(binary),
        "PYSKIP_TEST_MODEL": str(model),
        "PYTHONPATH": str(folder),
    }
    subprocess.run(command, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname', '').removeprefix('unit.')}.{case.get('name')}"
        kinds = {child.tag for child in case}
        found[name] = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", metavar="EXPRESSION")
    args = parser.parse_args()
    folder = BUILD / "tests"
    unpack(folder)
    model = BUILD / "tiny.gguf"
    make_random.make(model, dataclasses.replace(make_random.SHAPES["tiny"], n_ctx=2048))
    more = ["-k", args.k] if args.k else []
    theirs = outcomes(BUILD / "lib" / "llama-server", folder, model, more)
    ours = outcomes(program(), folder, model, more)
    worse = [name for name, outcome in ours.items() if theirs.get(name) == "passed" and outcome != "passed"]
    meant = {name: why for name in worse for start, why in DIFFERS.items() if name.startswith(start)}
    for kind in ("passed", "failed", "skipped"):
        counts = [sum(outcome == kind for outcome in found.values()) for found in (theirs, ours)]
        print(f"{kind}: {counts[0]} unpatched, {counts[1]} pyskip's")
    for name, why in meant.items():
        print(f"otherwise, as meant: {name} ({why})")
    for name in worse:
        if name not in meant:
            print(f"worse: {name}", file=sys.stderr)
    return 1 if set(worse) - set(meant) else 0


if __name__ == "__main__":
    sys.exit(main())

"""Upstream's own tests of its server, on unpatched llama-server and on pyskip's: `make upstream-server-test`.

    server.py [-k EXPRESSION]

What passes unpatched must pass on pyskip's, but for DIFFERS. The models that the tests would download are one tiny
random model; tests that need what it cannot do (embeddings of BERT, images) are skipped on both, those that upstream
marks slow, for they download real models, are left out, and what looks for a certain text fails on both. Exit 1 if
pyskip's fails what upstream's does not.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path += [str(ROOT / "tests" / "support"), str(ROOT / "tools" / "models")]
import make_random  # noqa: E402
from suite import Outcomes, outcomes, report, unpack  # noqa: E402

from pyskip.server.program import program  # noqa: E402

BUILD = ROOT / "build" / "upstream-server"

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
        server.chat_template = "chatml"  # as a model without one; the tiny one's own needs --jinja
        return server
    return staticmethod(preset)

def missing(name):
    def preset():
        pytest.skip(f"{name} is downloaded", allow_module_level=True)
    return staticmethod(preset)

preset = utils.ServerPreset
for name in ("tinyllama2", "tinyllama_infill", "stories15m_moe"):
    setattr(preset, name, local(getattr(preset, name)))
for name in ("bert_bge_small", "bert_bge_small_with_fa", "jina_reranker_tiny", "tinygemma3"):
    setattr(preset, name, missing(name))
preset.load_all = staticmethod(lambda: None)

def download_file(url, output_file_path=None):
    if "lora" in url.lower():
        pytest.skip("a LoRA is downloaded")
    return os.environ["PYSKIP_TEST_MODEL"]  # a draft

utils.download_file = download_file
"""


def tests(binary: Path, folder: Path, model: Path, more: list[str]) -> Outcomes:
    env = {
        **os.environ,
        "LLAMA_SERVER_BIN_PATH": str(binary),
        "PYSKIP_TEST_MODEL": str(model),
        "PYTHONPATH": str(folder),
    }
    found = outcomes(folder, binary.name, ["-q", "-p", "offline_models", "-m", "not slow", "unit", *more], env)
    return {name.removeprefix("unit."): outcome for name, outcome in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", metavar="EXPRESSION")
    args = parser.parse_args()
    folder = BUILD / "llama.cpp" / "tools" / "server" / "tests"
    unpack("vendor/llama.cpp/tools/server/tests/", folder)
    unpack("vendor/llama.cpp/models/templates/", BUILD / "llama.cpp" / "models" / "templates")  # the tests name them so
    (folder / "offline_models.py").write_text(PLUGIN)
    model = BUILD / "tiny.gguf"
    make_random.make(model, dataclasses.replace(make_random.SHAPES["tiny"], n_ctx=2048))
    more = ["-k", args.k] if args.k else []
    theirs = tests(BUILD / "lib" / "llama-server", folder, model, more)
    return report(theirs, tests(program(), folder, model, more), DIFFERS)


if __name__ == "__main__":
    sys.exit(main())

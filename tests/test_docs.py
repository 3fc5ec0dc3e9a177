"""The documentation does what it says: every block of code is run or checked (docs_blocks.py, docs_commands.py), links
lead somewhere, and the site is built without a warning."""

from __future__ import annotations

import configparser
import html
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from conftest import make_profile, make_random
from docs_blocks import LANGUAGES, REASONS, ROOT, Block, blocks, commands, pages

import pyskip

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TOOLS = ("as", "cat", "cc", "curl", "env", "grep", "head", "jq", "ld", "ls", "seq", "sh", "sleep", "tail")
TEXT = "The old mill stands by the river. Its wheel has not turned for years, but children play there. " * 40
ITEMS = '{"context": "The sky is", "continuation": " blue"}\n{"query": "One?", "choices": ["1", "2"], "gold": 0}\n'


@pytest.fixture(scope="session")
def docs_bin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The only folder on the PATH of a shell block."""
    folder = tmp_path_factory.mktemp("docs") / "bin"
    folder.mkdir()
    names = {name: name for name in ("pyskip", "make", "llm", "cp", "pip", "python")} | {"python3": "python"}
    for name, stands_for in names.items():
        script = f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/support/docs_commands.py {stands_for} "$@"\n'
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    (folder / "activate").touch()
    for name in TOOLS:
        if path := shutil.which(name):
            (folder / name).symlink_to(path)
    return folder


@pytest.fixture(scope="session")
def docs_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a profile: what the pages call model.gguf."""
    path = tmp_path_factory.mktemp("docs") / "model.gguf"
    make_random.make(path, make_random.SHAPES["tiny"])
    make_profile.make_profile(path, path.with_name("model.skip.gguf"))
    return path


class Reader:
    """Does what a page says, in a folder of its own."""

    def __init__(self, page: str, folder: Path, model: Path, docs_bin: Path) -> None:
        self.folder, self.bin = folder, docs_bin
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = str(free.getsockname()[1])
        self.names: dict[str, Any] = {"__name__": f"docs of {page}"}
        for file in (model, model.with_name("model.skip.gguf")):
            shutil.copy(file, folder)
        for name in ("benchmarks", "examples", "native", "tests"):
            (folder / name).symlink_to(ROOT / name)
        (folder / "docs").mkdir()  # copies: a page may say where results go
        for file in (ROOT / "docs").glob("*.md"):
            shutil.copy(file, folder / "docs")
        (folder / ".venv").mkdir()
        (folder / ".venv" / "bin").symlink_to(docs_bin)
        for name in set(re.findall(r"[\w-]+\.(?:txt|jsonl)\b", (ROOT / page).read_text("utf-8"))):
            (folder / name).write_text(TEXT if name.endswith("txt") else ITEMS)

    def text(self, block: Block) -> str:
        """With the port of this page's server."""
        return block.text.replace("8000", self.port)

    def run_shell(self, block: Block) -> None:
        script = commands(block).replace("8000", self.port)
        if any(re.search(rf"\b{name}\b", script) for name in TOOLS if shutil.which(name) is None):
            return  # a reader would install it first
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYSKIP_", "LLM_"))}
        env = {**kept, "PATH": str(self.bin), "HOME": str(self.folder), "DOCS_PORT": self.port}
        env |= {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE", "OMP_THREAD_LIMIT": "1"}
        log = self.folder / "log"
        with log.open("w") as file:  # no pipe: a server that goes on would keep it open
            done = subprocess.run(
                ["/bin/bash", "-euo", "pipefail", "-c", script], cwd=self.folder, env=env, stdin=subprocess.DEVNULL,
                stdout=file, stderr=subprocess.STDOUT, timeout=600,
            )  # fmt: skip
        assert done.returncode == 0, f"{block.place}\n{script}\n{log.read_text(errors='replace')[-2000:]}"

    def run_python(self, block: Block) -> None:
        exec(compile("\n" * block.line + self.text(block), str(ROOT / block.page), "exec"), self.names)

    def compile(self, block: Block) -> None:
        language = {"c": ["-std=c11", "-x", "c"], "cpp": ["-std=c++17", "-x", "c++"]}[block.language]
        command = ["cc", *language, "-Wall", "-Werror", "-fsyntax-only", "-I", pyskip.get_include(), "-"]
        done = subprocess.run(command, input=block.text, capture_output=True, text=True)
        assert done.returncode == 0, f"{block.place}\n{done.stderr}"

    def do(self, block: Block) -> None:
        parse: dict[str, Callable[[Block], Any]] = {
            "python": self.run_python,
            **dict.fromkeys(("sh", "bash", "console"), self.run_shell),
            **dict.fromkeys(("c", "cpp"), self.compile),
            "toml": lambda block: tomllib.loads(block.text),
            "json": lambda block: json.loads(block.text),
            "yaml": lambda block: yaml.safe_load(block.text),
            "ini": lambda block: configparser.ConfigParser(strict=False).read_string(block.text),
            "text": lambda block: None,
        }
        parse[block.language](block)

    def close(self) -> None:
        for value in self.names.values():
            if isinstance(value, pyskip.Llama):
                value.close()
        servers = self.folder / "servers"
        for pid in servers.read_text().split() if servers.exists() else ():
            os.kill(int(pid), signal.SIGKILL)


@pytest.fixture
def reader(
    request: pytest.FixtureRequest, tmp_path: Path, docs_model: Path, docs_bin: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Reader]:
    reader = Reader(request.node.callspec.params["page"], tmp_path, docs_model, docs_bin)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "llm"))
    monkeypatch.setattr("pyskip.runtime.llama.physical_cores", lambda: 1)  # a tiny model
    yield reader
    reader.close()


@pytest.mark.parametrize("page", [page for page in pages() if blocks(page)])
def test_blocks(page: str, reader: Reader) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block.place}: a block of {block.language or 'no language'}"
        file = re.fullmatch(r"file: (\w+\.\w+)", block.how)
        if file:
            (reader.folder / file[1]).write_text(block.text)
        if file or not block.how:
            reader.do(block)
        else:
            skipped = re.fullmatch("skip: (.*)", block.how)
            assert skipped, f"{block.place}: docs-test: {block.how} is unknown"
            assert skipped[1] in REASONS, f"{block.place}: {skipped[1]} is no reason, expected one of {REASONS}"


BAD = {
    "a command that fails": "```sh\npyskip info missing.gguf\n```\n",
    "an option that is gone": "```console\n$ pyskip generate model.gguf -p Hi --no-such-option\n```\n",
    "a program that is not there": "```sh\ncowsay hello\n```\n",
    "a target that is gone": "```sh\nmake no-such-target\n```\n",
    "an extra that is gone": "```sh\npip install 'pyskip[no-such-extra]'\n```\n",
    "a script's option that is gone": "```sh\n.venv/bin/python benchmarks/pace.py --no-such-option\n```\n",
    "the first of a pipe": "```sh\npyskip info missing.gguf | cat\n```\n",
    "the second of a console session": "```console\n$ true\nout\n$ pyskip info 'missing\n.gguf'\nout\n```\n",
    "python": "```python\nimport pyskip\n\npyskip.Lama\n```\n",
    "json": "```json\n{'a': 1}\n```\n",
    "c": "```c\nint main(void) { return pyskip; }\n```\n",
    "a language nobody knows": "```\nx\n```\n",
    "a reason that is none": "<!-- docs-test: skip: too lazy -->\n```sh\nfalse\n```\n",
    "a comment that is none": "<!-- docs-test: later -->\n```sh\nfalse\n```\n",
    "a block without an end": "```sh\ntrue\n",
    "a comment without a block": "<!-- docs-test: skip: needs root -->\n\nText.\n",
}


@pytest.mark.parametrize("bad", BAD)
def test_a_page_that_is_wrong_is_found(
    bad: str, tmp_path: Path, docs_model: Path, docs_bin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "page.md").write_text(f"# Page\n\n{BAD[bad]}")
    page = str(tmp_path / "page.md")
    folder = tmp_path / "reader"
    folder.mkdir()
    monkeypatch.chdir(folder)
    reader = Reader(page, folder, docs_model, docs_bin)
    with pytest.raises((AssertionError, ValueError, AttributeError)):
        test_blocks(page, reader)


def test_installs_from_a_folder_name_the_version() -> None:
    """Without one pip takes what PyPI has under the name, which is another project's."""
    files = [ROOT / name for name in (*pages(), "Containerfile")]
    files += [path for path in (ROOT / "examples").rglob("*") if path.is_file()]
    lines = [line for file in files for line in file.read_text().splitlines() if "--find-links" in line]
    named = [found for line in lines for found in re.findall(r"(?<!/)pyskip(?:\[[a-z,]+\])[^\s\"]*", line)]
    assert named
    assert {name.partition("]")[2] for name in named} == {f"=={pyskip.__version__}"}


def test_the_commands_of_a_console_session() -> None:
    text = "$ a 'b\nc'  # it's\nout\n$ d \\\n  e\n$ f # don't\nout 'g\n"
    assert commands(Block("page", 1, "console", text, "")) == "a 'b\nc'  # it's\nd \\\n  e\nf # don't\n"


LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", pages())
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text("utf-8"), flags=re.S)
    for target in LINK.findall(text):
        path = target.split("#")[0]
        if path and "://" not in path:
            assert ((ROOT / page).parent / path).exists(), f"{page} links to {target}"


FILE = re.compile(r"`((?:[\w.-]+/)*[\w-]+\.(?:py|cpp|h|toml|txt|yaml|md))`")


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_files_that_a_map_names_are_there(page: str) -> None:
    """By their path, or by the end of it."""
    folders = ("docs", "models", "native", "patches", "pyskip", "tests", "tools")
    there = [path.name for path in ROOT.iterdir()]
    there += [path.relative_to(ROOT).as_posix() for folder in folders for path in (ROOT / folder).rglob("*.*")]
    named = set(FILE.findall((ROOT / page).read_text("utf-8")))
    assert len(named) > 10
    assert {name for name in named if not any(f"/{path}".endswith(f"/{name}") for path in there)} == set()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def shown(site: Path, page: str) -> str:
    """A page's text."""
    text = (site / page).read_text("utf-8")
    text = re.sub(r"<(script|style).*?</\1>", "", text[text.index("<article") :], flags=re.S)
    return html.unescape(re.sub(r"<[^>]+>", "", text))


def test_the_site_has_every_page(site: Path) -> None:
    for page in (ROOT / "docs").glob("**/*.md"):
        built = page.relative_to(ROOT / "docs").with_suffix(".html").as_posix()
        assert (site / built).is_file()
        assert f'href="{built}"' in (site / "index.html").read_text("utf-8"), f"{built} is not in the navigation"


def test_the_site_asks_nothing_of_other_hosts(site: Path) -> None:
    loads = re.compile(r"<(?:script|img|iframe|source|link)\b[^>]*?(?:src|href)=\"?((?:https?:)?//[^\"> ]+)")
    for page in site.glob("**/*.html"):
        assert loads.findall(page.read_text("utf-8")) == [], page
    for sheet in site.glob("**/*.css"):
        assert re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//", sheet.read_text("utf-8")) == [], sheet


def test_the_reference_shows_every_command_and_option(site: Path) -> None:
    from pyskip.cli.main import cli

    text = shown(site, "reference/cli.html")
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        assert f"pyskip {name}" in text
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert all(flag in text for flag in parameter.opts), f"{name} {parameter.opts}"
                assert parameter.help
                assert " ".join(parameter.help.split())[:40] in " ".join(text.split()), f"{name} {parameter.opts}"


def test_the_reference_shows_every_name(site: Path) -> None:
    text = (site / "reference" / "api.html").read_text("utf-8")
    anchors = set(re.findall(r'id="([\w.]+)"', text))
    for name in set(pyskip.__all__) - {"__version__", "Policy"}:
        assert any(anchor.startswith("pyskip.") and anchor.endswith(f".{name}") for anchor in anchors), name
    for method in ("skip_stats", "keep_pace", "take_trace", "set_abort", "mark_generated"):
        assert f"pyskip.runtime.llama.Llama.{method}" in anchors

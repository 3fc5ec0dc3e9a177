"""pyskip's models in llm: by its command line, as a user has it, and by its Python API."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import llm
import llm.cli
import pytest
from click.testing import CliRunner, Result
from conftest import make_profile, make_random
from media import png

import pyskip.runtime.generation
from pyskip import llm_plugin

Cli = Callable[..., Result]


@pytest.fixture
def llm_cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """llm's command line, in this process, with a folder of its own."""
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "llm"))
    monkeypatch.setattr("pyskip.runtime.llama.physical_cores", lambda: 1)

    def run(*args: str, typed: str = "") -> Result:
        return CliRunner().invoke(llm.cli.cli, args, input=typed)

    return run


@pytest.fixture(scope="module")
def model(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    path = tmp_path_factory.mktemp("llm") / "model.gguf"
    shutil.copy(tiny, path)
    make_profile.make_profile(path, path.with_name("model.skip.gguf"))
    model = llm_plugin.PyskipModel("tiny", str(path))
    yield model
    model._loaded[1].close()


def test_it_is_found() -> None:
    found = [entry for entry in entry_points(group="llm") if entry.value == "pyskip.llm_plugin"]
    assert found
    assert found[0].load() is llm_plugin


@pytest.mark.model
def test_the_command_line(llm_cli: Cli, tiny: Path) -> None:
    listed = llm_cli("models", "--options", "-q", "pyskip")
    assert listed.exit_code == 0, listed.stderr
    assert "pyskip/demo" in listed.stdout
    for option in llm_plugin.PyskipModel.Options.model_fields:
        assert option in listed.stdout
    assert llm_cli("pyskip", "add", "tiny", str(tiny)).stdout == "pyskip/tiny\n"
    settings = (
        "-m",
        "pyskip/tiny",
        "-o",
        "max_tokens",
        "6",
        "-o",
        "n_threads",
        "1",
        "-o",
        "skip",
        "static:1,3",
        "-o",
        "temperature",
        "0",
    )
    said = llm_cli("Hello", "-s", "Be brief", *settings)
    assert said.exit_code == 0, said.stderr
    assert said.stdout.strip()
    assert said.stderr == ""
    assert llm_cli("Hello", "-s", "Be brief", "--no-stream", "--no-log", *settings).stdout == said.stdout
    logged = json.loads(llm_cli("logs", "--json").stdout)
    assert len(logged) == 1
    assert logged[0]["model"] == "pyskip/tiny"
    assert logged[0]["output_tokens"] == 6
    assert logged[0]["response_json"]["skip"]["spec"] == "static:1,3"
    assert logged[0]["response_json"]["skip"]["rate"] == pytest.approx(1 / 3)
    chat = llm_cli("chat", *settings, typed="Hello\nAnd then?\nquit\n")
    assert chat.exit_code == 0, chat.stderr
    assert len(re.findall("^> ", chat.stdout, re.MULTILINE)) == 3


@pytest.mark.model
def test_the_demo(llm_cli: Cli) -> None:
    said = llm_cli(
        "Are dogs real?", "-m", "pyskip/demo", "-o", "max_tokens", "12", "-o", "temperature", "0", "--no-log"
    )
    assert "dogs" in said.stdout.lower(), said.stderr


@pytest.mark.model
def test_mistakes_are_one_line(llm_cli: Cli, tmp_path: Path, tiny: Path) -> None:
    assert llm_cli("pyskip", "add", "x", "no-such-model").stderr.startswith("Error: no-such-model: ")
    assert llm_cli("pyskip", "add", "x", str(tmp_path / "none.gguf")).stderr.count("\n") == 1
    llm_cli("pyskip", "add", "tiny", str(tiny))
    wrong = llm_cli("Hi", "-m", "pyskip/tiny", "-o", "skip", "most")
    assert wrong.exit_code == 1
    assert wrong.stderr.startswith("Error: skip is 'most', expected off")
    assert wrong.stderr.count("\n") == 1
    names = tmp_path / "llm" / "pyskip.json"
    names.write_text("[]")
    assert "holds no JSON object" in llm_cli("models", "-q", "pyskip").stderr


@pytest.mark.model
def test_models_that_were_pulled(llm_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyskip.models.hub.in_cache", lambda repo, file: "0.6B" in repo or "0.6b" in repo)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert set(llm_plugin._known()) == {"demo"}
    (tmp_path / "models--some-one--Tiny").mkdir()
    known = llm_plugin._known()
    assert known["demo"] == llm_plugin.Named("demo")
    pulled = set(known) - {"demo"}
    assert pulled
    assert all("0.6b" in name for name in pulled)


def test_options(model: Any) -> None:
    few: dict[str, Any] = {"max_tokens": 8, "n_threads": 1, "n_ctx": 128, "temperature": 0.0}
    assert model.prompt("Hello", skip=0.5, **few).text()
    default = model.prompt("Hello", **few)
    default.text()
    assert default.response_json["skip"]["spec"] == "profile"
    assert (default.input_tokens > 0, default.output_tokens) == (True, 8)
    dense = model.prompt("Hello", skip="off", **few).text()
    assert model.prompt("Hello", skip="static:1,2,3", **few).text() != dense
    assert model.prompt("Hello", skip="off", **few).text() == dense
    for chosen in ({"temperature": 1.0}, {"temperature": None}):
        drawn = [model.prompt("Hello", **{**few, **chosen}, seed=seed).text() for seed in (1, 1, 2)]
        assert drawn[0] == drawn[1] != drawn[2]
    loaded = model._loaded[1]
    model.prompt("Hello", **{**few, "n_ctx": 64}).text()
    assert model._loaded[1] is not loaded
    for wrong in ({"max_tokens": 0}, {"temperature": float("nan")}, {"seed": -1}, {"no_such": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            model.prompt("Hello", **wrong)


def test_a_conversation_keeps_its_turns(model: Any) -> None:
    few: dict[str, Any] = {"max_tokens": 4, "n_threads": 1, "n_ctx": 256, "skip": "off", "temperature": 0.0}
    conversation = model.conversation()
    first = conversation.prompt("One", system="Count", **few)
    first.text()
    second = conversation.prompt("Two", **few)
    text = second.text()
    assert second.input_tokens > first.input_tokens
    turns = [("system", "Count"), ("user", "One"), ("assistant", first.text()), ("user", "Two")]
    tokens = pyskip.runtime.generation.chat_tokens(model._loaded[1], [{"role": r, "content": c} for r, c in turns])
    assert len(tokens) == second.input_tokens
    expected = pyskip.runtime.generation.Generation(model._loaded[1], tokens, max_tokens=4, temp=0.0, seed=None)
    assert "".join(expected) == text
    with pytest.raises(llm.ModelError, match="the context holds 256"):
        conversation.prompt("word " * 400, **few).text()


def test_schema(model: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer", "minimum": 3, "maximum": 12}},
        "required": ["age"],
    }
    few: dict[str, Any] = {"max_tokens": 40, "n_threads": 1, "n_ctx": 128, "temperature": 1.0}
    for seed in range(3):
        assert 3 <= json.loads(model.prompt("Hello", schema=schema, seed=seed, **few).text())["age"] <= 12
    with pytest.raises(llm.ModelError, match="multipleOf"):
        model.prompt("Hello", schema={"type": "integer", "multipleOf": 3}, **few).text()


def test_async(model: Any) -> None:
    """Two at once take turns and say what they say alone."""
    few: dict[str, Any] = {"max_tokens": 6, "n_threads": 1, "n_ctx": 128, "skip": "off", "temperature": 0.0}
    other = llm_plugin.AsyncPyskipModel(model)

    async def all_of_them() -> list[str]:
        async def one(text: str) -> str:
            return "".join([piece async for piece in other.prompt(text, **few)])

        return list(await asyncio.gather(one("Hello"), one("Goodbye")))

    expected = [model.prompt(text, **few).text() for text in ("Hello", "Goodbye")]
    assert asyncio.run(all_of_them()) == expected
    assert asyncio.run(all_of_them()) == expected


def test_both_are_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_plugin, "_known", lambda: {"one": llm_plugin.Named("one.gguf")})
    found: list[tuple[Any, Any]] = []
    llm_plugin.register_models(lambda model, other: found.append((model, other)))
    ((model, other),) = found
    assert model.model_id == other.model_id == "pyskip/one"


def test_a_seed_is_not_the_next_prompt_s(model: Any) -> None:
    few = {"max_tokens": 8, "n_threads": 1, "n_ctx": 128, "temperature": 1.5}
    model.prompt("Hello", seed=1, **few).text()
    assert len({model.prompt("Hello", **few).text() for _ in range(4)}) > 1


@pytest.mark.slow
def test_beside_a_stock_llama_cpp(tmp_path: Path) -> None:
    """As if another plugin has loaded it: llm goes on, and prompting tells what to do. A process of its own."""
    own = {"PYTHONPATH": str(Path(__file__).parent / "stock"), "LLM_USER_PATH": str(tmp_path / "llm")}
    command = [sys.executable, "-m", "llm", "Hi", "-m", "pyskip/demo"]
    env = {**os.environ, **own, "LLM_LOAD_PLUGINS": "pyskip"}
    said = subprocess.run(command, input="", capture_output=True, text=True, timeout=300, env=env)
    assert said.returncode == 1
    assert "a stock llama_cpp is loaded already" in said.stderr
    assert "Traceback" not in said.stderr


TOOLS_TEMPLATE = (
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def weather(city: str) -> str:
    """What the weather is like."""
    return f"rain in {city}"


@pytest.fixture
def calling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, list[str]]]:
    """A model whose template has tools and which asks for one, then answers; and the prompts that it got."""
    with monkeypatch.context() as patched:
        patched.setattr(make_random, "CHAT_TEMPLATE", TOOLS_TEMPLATE)
        make_random.make(tmp_path / "tools.gguf", make_random.SHAPES["tiny"])
    model = llm_plugin.PyskipModel("tools", str(tmp_path / "tools.gguf"))
    prompts: list[str] = []

    def answers(self: Any) -> Iterator[str]:
        prompts.append(self._llm.detokenize(self._tokens, special=True).decode())
        call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
        yield from "It rains." if "rain in Ulm" in prompts[-1] else f"I look. {call}"

    monkeypatch.setattr(pyskip.runtime.generation.Generation, "__iter__", answers)
    yield model, prompts
    if model._loaded[1] is not None:
        model._loaded[1].close()


FEW = {"n_threads": 1, "n_ctx": 512, "skip": "off"}


def test_tools(calling: tuple[Any, list[str]]) -> None:
    model, prompts = calling
    chain = model.conversation().chain("How is it?", tools=[weather], options=FEW)
    responses = list(chain.responses())
    assert [response.text() for response in responses] == ["I look.", "It rains."]
    (call,) = responses[0].tool_calls()
    assert (call.name, call.arguments) == ("weather", {"city": "Ulm"})
    assert responses[0].input_tokens > 0
    assert '"description": "What the weather is like."' in prompts[0]
    assert '<|assistant|>I look.<tool_call>{"name": "weather"' in prompts[1]
    assert "<|tool|>rain in Ulm<|assistant|>" in prompts[1]


def test_tools_async(calling: tuple[Any, list[str]]) -> None:
    model = llm_plugin.AsyncPyskipModel(calling[0])

    async def text() -> str:
        return str(await model.conversation().chain("How is it?", tools=[weather], options=FEW).text())

    assert asyncio.run(text()).split() == ["I", "look.", "It", "rains."]


def test_tools_that_a_template_does_not_have(model: Any) -> None:
    with pytest.raises(llm.ModelError, match=r"passes over tools \(weather\), expected one that has them"):
        model.prompt("Hi", tools=[weather], max_tokens=2, n_threads=1, n_ctx=128).text()


def test_calls_that_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_random, "CHAT_TEMPLATE", TOOLS_TEMPLATE.replace("c.function | tojson", "c.function.name"))
    make_random.make(tmp_path / "m.gguf", make_random.SHAPES["tiny"])
    other = llm_plugin.PyskipModel("other", str(tmp_path / "m.gguf"))
    with pytest.raises(llm.ModelError, match="in a form that is not read here, expected JSON"):
        other.prompt("Hi", tools=[weather], max_tokens=2, **FEW).text()
    other._loaded[1].close()


def test_attachments_are_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="does not support attachments"):
        model.prompt("Hi", attachments=[llm.Attachment(type="image/png", content=b"x")]).text()


@pytest.mark.slow  # needs libmtmd, which `make test` builds
def test_attachments(llm_cli: Cli, tmp_path: Path, tiny: Path, eyes: Path) -> None:
    files = []
    for seed in (1, 2):
        files.append(str(tmp_path / f"{seed}.png"))
        Path(files[-1]).write_bytes(png(seed))
    assert llm_cli("pyskip", "add", "eyes", str(tiny), "--mmproj", str(eyes)).stdout == "pyskip/eyes\n"
    assert llm_cli("pyskip", "add", "blind", str(tiny)).stdout == "pyskip/blind\n"
    settings: tuple[str, ...] = (
        "w1",
        "-m",
        "pyskip/eyes",
        "-o",
        "max_tokens",
        "8",
        "-o",
        "n_threads",
        "1",
        "-o",
        "n_ctx",
        "512",
    )
    settings += ("-o", "temperature", "1", "-o", "seed", "1")
    none, one, other, two = (
        llm_cli(*settings, *more) for more in ((), ("-a", files[0]), ("-a", files[1]), ("-a", files[0], "-a", files[1]))
    )
    assert none.exit_code == one.exit_code == 0, one.stderr
    assert len({none.stdout, one.stdout, other.stdout, two.stdout}) == 4
    later = llm_cli("w2", "-c", *settings[3:])
    assert later.exit_code == 0, later.stderr
    blind = llm_cli("w1", "-m", "pyskip/blind", "-a", files[0])
    assert blind.exit_code == 1
    assert "does not support attachments" in blind.stderr
    broken = tmp_path / "broken.png"
    broken.write_bytes(png(1)[:100])
    wrong = llm_cli(*settings, "--at", str(broken), "image/png")
    assert wrong.exit_code == 1
    assert wrong.stderr.count("\n") == 1
    assert "cannot be read" in wrong.stderr
    for mmproj, reason in ((str(tiny), "expected a projector"), (str(tmp_path / "none"), "no such file")):
        refused = llm_cli("pyskip", "add", "x", str(tiny), "--mmproj", mmproj)
        assert refused.exit_code == 1
        assert reason in refused.stderr


@pytest.mark.slow
def test_attachments_of_async_models(tiny: Path, eyes: Path) -> None:
    model = llm_plugin.PyskipModel("eyes", str(tiny), str(eyes))

    async def ask(seed: int) -> str:
        attachment = llm.Attachment(content=png(seed), type="image/png")
        response = llm_plugin.AsyncPyskipModel(model).prompt(
            "w1", attachments=[attachment], max_tokens=8, temperature=1.0, seed=1, n_threads=1, n_ctx=512
        )
        return str(await response.text())

    one, other = asyncio.run(ask(1)), asyncio.run(ask(2))
    assert one != other
    said = model.prompt(
        "w1",
        attachments=[llm.Attachment(content=png(1))],
        max_tokens=8,
        temperature=1.0,
        seed=1,
        n_threads=1,
        n_ctx=512,
    )
    assert said.text() == one
    model._loaded[1].close()

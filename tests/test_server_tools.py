"""Tools through the official clients of OpenAI and Anthropic, with a model that calls them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import openai
import pytest
from parrot import make_parrot
from serving import TOOL_TEMPLATE, Running, running

pytestmark = pytest.mark.loopback

MESSAGES: list[Any] = [{"role": "user", "content": "w1"}]
PARAMETERS: Any = {
    "type": "object",
    "properties": {"pattern": {"type": "string"}, "n": {"type": "integer"}},
    "required": ["pattern"],
}


def call(name: str, arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


LOOK = call("look_up", {"pattern": 'a "b" \\d', "n": 3})
SAYS = {
    "one": [LOOK[:30], LOOK[30:45], LOOK[45:]],
    "two": [LOOK, "\n" + call("other", {})],
    "text": ["Good", " day", "."],
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "look_up", "description": "Looks up.", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "other"}},
]
Make = Callable[[str], Running]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """A server by what its model says, started when it is first asked for."""
    folder, servers = tmp_path_factory.mktemp("parrots"), dict[str, Running]()
    with ExitStack() as stack:

        def make(name: str) -> Running:
            if name not in servers:
                path = make_parrot(folder / f"{name}.gguf", SAYS[name])
                servers[name] = stack.enter_context(running(str(path), "-c", "2048", "--chat-template", TOOL_TEMPLATE))
            return servers[name]

        yield make


@pytest.fixture(scope="module")
def client(made: Make) -> Iterator[Callable[[str], openai.OpenAI]]:
    with openai.DefaultHttpxClient(verify=False) as http:
        yield lambda name: openai.OpenAI(
            base_url=f"{made(name).url}/v1", api_key="none", http_client=http, max_retries=0, timeout=30
        )


def calls(message: Any) -> list[tuple[str, Any]]:
    return [(one.function.name, json.loads(one.function.arguments)) for one in message.tool_calls or ()]


Client = Callable[[str], openai.OpenAI]
LOOKED = ("look_up", {"pattern": 'a "b" \\d', "n": 3})


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "look_up"}}])
def test_one_call(client: Client, choice: Any) -> None:
    answer = client("one").chat.completions.create(model="one", messages=MESSAGES, tools=TOOLS, tool_choice=choice)
    assert calls(answer.choices[0].message) == [LOOKED]
    assert answer.choices[0].finish_reason == "tool_calls"
    assert not answer.choices[0].message.content


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_call_in_parts(client: Client, choice: Any) -> None:
    with client("one").chat.completions.stream(
        model="one", messages=MESSAGES, tools=TOOLS, tool_choice=choice
    ) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert calls(final.choices[0].message) == [LOOKED]
    assert final.choices[0].finish_reason == "tool_calls"


def test_no_call_if_none_is_wanted(client: Client) -> None:
    answer = client("one").chat.completions.create(model="one", messages=MESSAGES, tools=TOOLS, tool_choice="none")
    assert not answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "stop"


def test_text_beside_tools(client: Client) -> None:
    answer = client("text").chat.completions.create(model="text", messages=MESSAGES, tools=TOOLS)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Good day.", "stop")
    assert not answer.choices[0].message.tool_calls


def test_calls_at_a_time(client: Client) -> None:
    kwargs: Any = {"model": "two", "messages": MESSAGES, "tools": TOOLS, "parallel_tool_calls": True}
    answer = client("two").chat.completions.create(**kwargs)
    assert calls(answer.choices[0].message) == [LOOKED, ("other", {})]
    assert len({one.id for one in answer.choices[0].message.tool_calls or ()}) == 2
    with client("two").chat.completions.stream(**kwargs) as stream:
        for _ in stream:
            pass
        assert calls(stream.get_final_completion().choices[0].message) == [LOOKED, ("other", {})]


def test_what_was_called_goes_back(client: Client) -> None:
    first = client("one").chat.completions.create(model="one", messages=MESSAGES, tools=TOOLS)
    message = first.choices[0].message
    assert message.tool_calls
    (called,) = message.tool_calls
    messages = [*MESSAGES, message.model_dump(), {"role": "tool", "tool_call_id": called.id, "content": "w2"}]
    again = client("one").chat.completions.create(model="one", messages=messages, tools=TOOLS)
    assert calls(again.choices[0].message) == [LOOKED]


def test_responses(client: Client) -> None:
    tools: Any = [{"type": "function", "name": "look_up", "parameters": PARAMETERS, "strict": False}]
    answer = client("one").responses.create(model="one", input="w1", tools=tools)
    (called,) = [item for item in answer.output if item.type == "function_call"]
    assert (called.name, json.loads(called.arguments)) == LOOKED
    dumped: Any = [item.model_dump() for item in answer.output]
    result: Any = {"type": "function_call_output", "call_id": called.call_id, "output": "w2"}
    again = client("one").responses.create(
        model="one", input=[{"role": "user", "content": "w1"}, *dumped, result], tools=tools
    )
    assert any(item.type == "function_call" for item in again.output)


@pytest.fixture(scope="module")
def claude(made: Make) -> Iterator[Callable[[str], Any]]:
    anthropic = pytest.importorskip("anthropic")
    with anthropic.DefaultHttpxClient(verify=False) as http:
        yield lambda name: anthropic.Anthropic(
            base_url=made(name).url, api_key="none", http_client=http, max_retries=0, timeout=30
        )


ANTHROPIC_TOOLS = [
    {"name": "look_up", "description": "Looks up.", "input_schema": PARAMETERS},
    {"name": "other", "input_schema": {"type": "object"}},
]


@pytest.mark.parametrize("choice", [{"type": "auto"}, {"type": "any"}, {"type": "tool", "name": "look_up"}])
def test_anthropic_tools(claude: Callable[[str], Any], choice: Any) -> None:
    kwargs = {"model": "one", "max_tokens": 50, "messages": MESSAGES, "tools": ANTHROPIC_TOOLS, "tool_choice": choice}
    answer = claude("one").messages.create(**kwargs)
    (called,) = [block for block in answer.content if block.type == "tool_use"]
    assert (called.name, called.input) == LOOKED
    assert answer.stop_reason == "tool_use"
    with claude("one").messages.stream(**kwargs) as stream:
        final = stream.get_final_message()
    (streamed,) = [block for block in final.content if block.type == "tool_use"]
    assert (streamed.name, streamed.input) == LOOKED
    result = {"type": "tool_result", "tool_use_id": called.id, "content": "w2"}
    messages = [
        *MESSAGES,
        {"role": "assistant", "content": [block.model_dump() for block in answer.content]},
        {"role": "user", "content": [result]},
    ]
    assert claude("one").messages.create(**{**kwargs, "messages": messages}).stop_reason == "tool_use"


def test_anthropic_text(claude: Callable[[str], Any]) -> None:
    kwargs = {"model": "text", "max_tokens": 50, "messages": MESSAGES, "system": "w3", "extra_body": {"skip": "off"}}
    answer = claude("text").messages.create(**kwargs)
    assert [block.text for block in answer.content] == ["Good day."]
    assert (answer.stop_reason, answer.usage.output_tokens > 0) == ("end_turn", True)
    with claude("text").messages.stream(**kwargs) as stream:
        assert "".join(stream.text_stream) == "Good day."
    counted = claude("text").messages.count_tokens(model="text", messages=MESSAGES, system="w3")
    usage = answer.usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)

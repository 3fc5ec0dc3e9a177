"""Whatever form a chat template wants, the message arrives."""

from __future__ import annotations

import pickle
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from suite import unpack

import pyskip
from pyskip.runtime.formatter import MessageFormatter
from pyskip.runtime.tools import ToolCall, find_calls

TAIL = "</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}" + TAIL
TYPED = (
    "{% for m in messages %}<{{ m.role }}>{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}"
    "{% endif %}{% endfor %}" + TAIL
)
BOTH = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}" + TAIL
)
CALLS = (
    "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}[{{ c.function.name }} ARGS]{% endfor %}"
    "{% endfor %}"
)
AS_TEXT = CALLS.replace("ARGS", "{{ c.function.arguments }}")
AS_JSON = CALLS.replace("ARGS", "{{ c.function.arguments | tojson }}")
AS_ITEMS = CALLS.replace("ARGS", "{% for k, v in c.function.arguments | items %}{{ k }}={{ v }}{% endfor %}")


# Of llama.cpp's collection: no system messages; nothing about calls; a variable that only its own client fills in.
NO_CALLS = (
    "CohereForAI-c4ai-command-r-plus", "HuggingFaceTB-SmolLM3", "LFM2-", "LFM2.5-Instruct", "deepseek-ai-DeepSeek-R1-D",
    "google-gemma-2", "ibm-granite-granite-3.3", "llama-cpp-rwkv", "microsoft-Phi-3.5",
)  # fmt: skip
NO_RESULTS = ("google-gemma-2", "llama-cpp-rwkv", "microsoft-Phi-3.5")
NOT_ALONE = ("fireworks-ai-llama-3-firefunction",)


def formatted(template: str, messages: list[dict[str, Any]]) -> str:
    return str(MessageFormatter(template, eos_token="", bos_token="")(messages=messages).prompt)


@pytest.mark.parametrize("template", [PLAIN, TYPED, BOTH])
@pytest.mark.parametrize("content", ["hello", [{"type": "text", "text": "hello"}]])
def test_text_and_parts(template: str, content: Any) -> None:
    messages = [{"role": "system", "content": "be"}, {"role": "user", "content": content}]
    assert formatted(template, messages) == "<system>be</><user>hello</><assistant>"
    assert messages[1]["content"] == content  # the caller's own


@pytest.mark.parametrize("template", [PLAIN, TYPED, BOTH])
def test_an_answer_that_was_begun(template: str) -> None:
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "I am"}]
    assert formatted(template, messages) == "<user>hello</><assistant>I am"


@pytest.mark.parametrize(
    ("template", "shown"), [(AS_TEXT, '{"city": "Rome"}'), (AS_JSON, '{"city": "Rome"}'), (AS_ITEMS, "city=Rome")]
)
@pytest.mark.parametrize("arguments", ['{"city": "Rome"}', {"city": "Rome"}])
def test_arguments_of_tools(template: str, shown: str, arguments: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "go", "arguments": arguments}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "where"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "there"},
    ]
    assert formatted(template, messages) == f"where[go {shown}]there"


def test_arguments_that_are_no_json() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "go", "arguments": "{"}}
    assert "go" in formatted(AS_JSON, [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}])


def test_a_template_that_refuses_says_so() -> None:
    with pytest.raises(ValueError, match="no users here"):
        formatted("{{ raise_exception('no users here') }}", [{"role": "user", "content": "x"}])


def test_in_a_chat(tiny: Path) -> None:
    kwargs: dict[str, Any] = {"n_ctx": 128, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
    messages = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]
    with (
        closing(pyskip.Llama(tiny, chat_template=TYPED, **kwargs)) as llm,
        closing(pickle.loads(pickle.dumps(llm))) as copy,
    ):
        for one in (llm, copy):
            one.create_chat_completion(messages, max_tokens=2)
            prompt = one.detokenize(one._taken[0], special=True).decode()
            assert prompt.replace(" ", "").endswith("<user>w1</><assistant>w2")


@pytest.mark.slow
def test_every_template_of_llama_cpp(tmp_path: Path) -> None:
    """Its own tests' collection, of the pinned release."""
    unpack("vendor/llama.cpp/models/templates/", tmp_path)
    templates = sorted(tmp_path.rglob("*.jinja"))
    assert len(templates) > 50
    wrong = [f"{path.name}: {what}" for path in templates for what in lost(path)]
    assert not wrong, "\n".join(wrong)


def lost(path: Path) -> list[str]:
    """What does not come out of a template as it should."""
    formatter = MessageFormatter(path.read_text(), eos_token="</s>", bos_token="<s>")
    if path.name.startswith(NOT_ALONE):
        return []
    user = {"role": "user", "content": "one"}
    tool = {"name": "go", "description": "goes", "parameters": {"type": "object", "properties": {}}}

    def parts(*texts: str) -> list[dict[str, str]]:
        return [{"type": "text", "text": text} for text in texts]

    def called(arguments: Any, result: Any = "there") -> list[dict[str, Any]]:
        call = {"id": "abcdefghi", "type": "function", "function": {"name": "go", "arguments": arguments}}
        asked = {"role": "assistant", "content": None, "tool_calls": [call]}
        return [user, asked, {"role": "tool", "name": "go", "tool_call_id": "abcdefghi", "content": result}]

    def said(*messages: dict[str, Any], **kwargs: Any) -> str:
        return str(formatter(messages=messages, **kwargs).prompt)

    found = {
        "text": "one" in said(user),
        "parts are the text": said({**user, "content": parts("one")}) == said(user),
        "two parts": all(text in said({**user, "content": parts("one", "two")}) for text in ("one", "two")),
        "an answer in parts": "yes" in said(user, {"role": "assistant", "content": parts("yes")}, user),
        "an answer that was begun": said(user, {"role": "assistant", "content": "I am"}).endswith("I am"),
    }
    for role in ("system", "developer"):
        texts = [said({"role": role, "content": content}, user) for content in ("zebra", parts("zebra"))]
        found[f"{role} message"] = "zebra" in texts[0] and texts[0].count("one") >= 1 and "'text'" not in texts[1]
        found[f"{role} message in parts"] = "zebra" in texts[1]
    if not path.name.startswith(NO_CALLS):
        tools = [{"type": "function", "function": tool}]
        texts = [said(*called(arguments), tools=tools) for arguments in ('{"city": "Rome"}', {"city": "Rome"})]
        found["arguments of tools"] = texts[0] == texts[1] and "Rome" in texts[0] and '\\"city' not in texts[0]
    if not path.name.startswith(NO_RESULTS):
        text = said(*called("{}", parts("there")))
        found["results of tools"] = "there" in text and "'type': 'text'" not in text
    return [name for name, is_right in found.items() if not is_right]


@pytest.mark.parametrize(
    ("text", "before", "calls"),
    [
        ('So.\n<tool_call>\n{"name": "go", "arguments": {"to": "x"}}\n</tool_call>', "So.", [{"to": "x"}]),
        ('[TOOL_CALLS][{"name": "go", "arguments": {}}, {"name": "go", "arguments": {"n": 1}}]', "", [{}, {"n": 1}]),
        ('{"name": "go", "parameters": {"a": [{"b": 1}]}}<|eom_id|>', "", [{"a": [{"b": 1}]}]),
        ('```json\n{"type": "function", "function": {"name": "go", "arguments": "{\\"n\\": 2}"}}', None, [{"n": 2}]),
        ('{"name": "other", "arguments": {}} {"name": "go"} {{{ {"name": "go", "arguments": 3}', None, []),
        ("{" * 5000 + "[" * 5000, None, []),
        ("I cannot.", "I cannot.", []),
    ],
)
def test_calls_of_tools(text: str, before: str | None, calls: list[dict[str, Any]]) -> None:
    found = find_calls(text, ["go"])
    assert found[1] == [ToolCall("go", arguments) for arguments in calls]
    if before is not None:
        assert found[0] == before


@pytest.mark.parametrize("template", [PLAIN, TYPED, BOTH])
def test_images_are_refused(template: str) -> None:
    """A text-only template shows the part's Python object, or nothing."""
    parts = [{"type": "text", "text": "hello"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    with pytest.raises(pyskip.DecodeError, match="part of type 'image_url', expected text"):
        formatted(template, [{"role": "user", "content": parts}])

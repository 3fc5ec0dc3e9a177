"""Whatever form a chat template wants, the message arrives."""

from __future__ import annotations

import pickle
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import pyskip
from pyskip.runtime.formatter import MessageFormatter

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

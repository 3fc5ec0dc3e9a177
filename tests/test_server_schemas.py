"""Schemas on the server: held as they are by the library, or refused by the same line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from schemas import HELD, NOT_HELD
from serving import Running, running

import pyskip
from pyskip.runtime.schema import grammar_for_schema

pytestmark = pytest.mark.loopback

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "w1"}]
FORMS: dict[str, tuple[str, Callable[[Any], dict[str, Any]]]] = {
    "json_schema": (CHAT, lambda s: {"response_format": {"type": "json_schema", "json_schema": {"schema": s}}}),
    "json_object": (CHAT, lambda s: {"response_format": {"type": "json_object", "schema": s}}),
    "completion": ("/completion", lambda s: {"json_schema": s, "prompt": "w1"}),
    "responses": ("/v1/responses", lambda s: {"input": "w1", "text": {"format": {"type": "json_schema", "schema": s}}}),
    "messages": ("/v1/messages", lambda s: {"output_config": {"format": {"type": "json_schema", "schema": s}}}),
    "strict tool": (CHAT, lambda s: {"tools": [tool(s, strict=True)]}),
}


def tool(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": schema, **more}}


@pytest.fixture(scope="module")
def server(tiny: Path) -> Iterator[Running]:
    with running(str(tiny)) as server:
        yield server


def ask(server: Running, form: str, schema: Any, **more: Any) -> Any:
    path, make = FORMS[form]
    return server.post(path, {"messages": MESSAGES, "max_tokens": 2, "temperature": 0, **make(schema), **more})


def library_line(schema: Any) -> str:
    with pytest.raises(pyskip.DecodeError) as caught:
        grammar_for_schema(schema)
    return str(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_held_is_refused_by_name(server: Running, form: str) -> None:
    for schema, keyword in NOT_HELD:
        answer = ask(server, form, schema)
        assert answer.status_code == 400, schema
        error = answer.json()["error"]
        assert error["message"] == library_line(schema)
        assert keyword in error["message"]
        assert error["param"] in ("json_schema", "response_format", "text", "output_config", "tools")


def test_what_is_held(server: Running) -> None:
    for form in ("json_schema", "completion"):
        for schema in HELD:
            assert ask(server, form, schema).status_code == 200, schema


def test_a_tool_that_is_not_strict_only_tells_the_model(server: Running) -> None:
    for schema, _ in NOT_HELD:
        assert server.post(CHAT, {"messages": MESSAGES, "max_tokens": 2, "tools": [tool(schema)]}).status_code == 200


def test_an_answer_is_as_its_schema(server: Running) -> None:
    schema = {
        "type": "object",
        "properties": {
            "n": {"type": "integer", "minimum": 3, "maximum": 12},
            "code": {"type": "string", "pattern": "^\\d{2}-[a-c]$"},
            "one": {"allOf": [{"type": "string", "maxLength": 1}]},
        },
        "required": ["n", "code", "one"],
    }
    for seed in range(5):
        answer = ask(server, "json_schema", schema, max_tokens=300, temperature=1.0, seed=seed).json()
        value = json.loads(answer["choices"][0]["message"]["content"])
        assert 3 <= value["n"] <= 12
        assert value["code"][:2].isdigit()
        assert len(value["code"]) == 4
        assert len(value["one"]) <= 1

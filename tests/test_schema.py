"""response_format: what a JSON schema says is held, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from llama_cpp.llama_grammar import LlamaGrammar
from schemas import HELD, NOT_HELD

import pyskip
from pyskip.runtime.schema import grammar_for_schema

NO_SCHEMA: list[tuple[Any, str]] = [
    ([], "expected an object"),
    ("{", "is no JSON"),
    ({"type": "colour"}, "colour"),
    ({"$ref": "#/$defs/none"}, "defs not found"),
    ({"$ref": "https://example.org/x.json"}, "unsupported"),
    ({"type": "string", "minLength": -1}, "minLength is -1"),
    ({"type": "string", "pattern": "^" + "a?" * 127 + "$"}, "optional parts"),
    ({"properties": {"é" * 400: {}}}, "name of 800 bytes"),
    ({"enum": []}, "enum must be"),
    ({"const": float("nan")}, "is no JSON"),
    ({"const": object()}, "is no JSON"),
]


@pytest.fixture(scope="module")
def small(tiny: Path) -> Iterator[pyskip.Llama]:
    with closing(pyskip.Llama(tiny, n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False)) as llm:
        yield llm


def answer(llm: pyskip.Llama, response_format: dict[str, Any], **kwargs: Any) -> str:
    messages = [{"role": "user", "content": "w1"}]
    kwargs = {"max_tokens": 60, "temperature": 1.0, "response_format": response_format, **kwargs}
    return str(llm.create_chat_completion(messages, **kwargs)["choices"][0]["message"]["content"])


@pytest.mark.parametrize("schema", HELD, ids=json.dumps)
def test_held(small: pyskip.Llama, schema: dict[str, Any]) -> None:
    small.check_grammar(LlamaGrammar.from_string(grammar_for_schema(schema), False))


@pytest.mark.parametrize(("schema", "keyword"), NOT_HELD, ids=[json.dumps(schema) for schema, _ in NOT_HELD])
def test_not_held(schema: dict[str, Any], keyword: str) -> None:
    for inside in (schema, {"type": "array", "items": schema}, {"type": "object", "properties": {"p": schema}}):
        with pytest.raises(pyskip.DecodeError, match=f"the schema's {keyword}.* cannot be held"):
            grammar_for_schema({**inside, "$defs": schema.get("$defs", {})})


@pytest.mark.parametrize(("schema", "reason"), NO_SCHEMA, ids=[reason for _, reason in NO_SCHEMA])
def test_no_schema(schema: Any, reason: str) -> None:
    with pytest.raises(pyskip.DecodeError, match=reason) as caught:
        grammar_for_schema(schema)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("depth", [70, 10_000])
def test_nested_too_deep(depth: int) -> None:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    with pytest.raises(pyskip.DecodeError, match="nested deeper"):
        grammar_for_schema(schema)


def test_a_pattern_that_is_held_is_not_any_text() -> None:
    """Else pyskip_pattern_unheld() says of one that it is held, and upstream's converter thinks otherwise."""
    for schema in HELD:
        if "pattern" in schema:
            assert "root ::= string\n" not in grammar_for_schema(schema)


@pytest.mark.parametrize("form", ["json_schema", "json_object", "beside"])
def test_chat_holds_it(small: pyskip.Llama, form: str) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 3, "maximum": 12}},
        "required": ["a"],
    }
    formats: dict[str, dict[str, Any]] = {
        "json_schema": {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}},
        "json_object": {"type": "json_object", "schema": schema},
        "beside": {"type": "json_schema", "schema": schema},
    }
    for seed in range(8):
        assert 3 <= json.loads(answer(small, formats[form], seed=seed))["a"] <= 12


def test_text_and_json_object(small: pyskip.Llama) -> None:
    plain = answer(small, {"type": "text"}, temperature=0)
    assert (
        plain
        == small.create_chat_completion([{"role": "user", "content": "w1"}], max_tokens=60, temperature=0)["choices"][
            0
        ]["message"]["content"]
    )
    assert answer(small, {"type": "json_object"}, temperature=0).startswith("{")


@pytest.mark.parametrize(
    "bad", [{"type": "xml"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {}}, {}]
)
def test_bad_format(small: pyskip.Llama, bad: dict[str, Any]) -> None:
    with pytest.raises(pyskip.DecodeError, match="response_format has"):
        answer(small, bad)


def test_beside_a_grammar(small: pyskip.Llama) -> None:
    grammar = LlamaGrammar.from_string('root ::= "x"', False)
    with pytest.raises(pyskip.DecodeError, match="expected one of them"):
        answer(small, {"type": "json_object"}, grammar=grammar)

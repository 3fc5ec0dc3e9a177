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


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"type": "integer"}, "minItems": 3, "maxItems": 2},
        {"type": "string", "minLength": 3, "maxLength": 2},
        {"type": "integer", "minimum": 5, "maximum": 2},
        {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 4},
        {"type": "object", "properties": {"a": {"type": "integer", "minimum": 5, "exclusiveMaximum": 5}}},
    ],
)
def test_what_no_value_holds_to(schema: dict[str, Any]) -> None:
    """llama.cpp's parser of grammars never ends on the first two."""
    with pytest.raises(pyskip.DecodeError, match="which no value holds to"):
        grammar_for_schema(schema)


@pytest.mark.parametrize("grammar", ['root ::= "a"{3,2}', "root ::= [a-c]{ 12 , 3 }", 'root ::= ("}" "{")\n  {2,1}'])
def test_a_repetition_the_wrong_way_round(small: pyskip.Llama, grammar: str) -> None:
    with pytest.raises(pyskip.DecodeError, match="cannot read the grammar"):
        small.create_completion("w1", max_tokens=2, grammar=LlamaGrammar.from_string(grammar, verbose=False))


def test_what_looks_like_a_repetition(small: pyskip.Llama) -> None:
    grammar = LlamaGrammar.from_string('root ::= "{3,2}\\"{2,1}" [{3,2}] "x"{1,1} # {3,2}', verbose=False)
    assert str(small.create_completion("w1", max_tokens=60, grammar=grammar)["choices"][0]["text"]).startswith(
        '{3,2}"{2,1}'
    )


PICK = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3, "maximum": 5}}, "required": ["n"]}
TOOL = {"name": "pick", "description": "picks", "parameters": PICK}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "asked",
    [
        {
            "tools": [{"type": "function", "function": TOOL}],
            "tool_choice": {"type": "function", "function": {"name": "pick"}},
        },
        {"functions": [TOOL], "function_call": {"name": "pick"}},
    ],
)
def test_arguments_of_a_tool_that_must_be_called(small: pyskip.Llama, asked: dict[str, Any], stream: bool) -> None:
    messages = [{"role": "user", "content": "w1"}]
    for seed in range(4):
        found = small.create_chat_completion(
            messages, temperature=1.5, max_tokens=60, seed=seed, stream=stream, **asked
        )
        if stream:
            calls = [chunk["choices"][0]["delta"].get("function_call") for chunk in found]
            text = "".join(call["arguments"] for call in calls if call)
        else:
            text = found["choices"][0]["message"]["function_call"]["arguments"]
        assert 3 <= json.loads(text)["n"] <= 5


def test_parameters_that_no_grammar_holds(small: pyskip.Llama) -> None:
    tool = {**TOOL, "parameters": {"type": "object", "properties": {"n": {"type": "integer", "multipleOf": 3}}}}
    with pytest.raises(pyskip.DecodeError, match="multipleOf"):
        small.create_chat_completion([{"role": "user", "content": "w1"}], [tool], {"name": "pick"}, max_tokens=4)

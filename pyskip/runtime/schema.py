"""A JSON schema as a grammar, by llama.cpp's own converter; what that would pass over is refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ..binding.library import ffi, lib
from ..errors import DecodeError

__all__ = ["ASKING", "asked_parameters", "grammar_for_format", "grammar_for_schema"]

N_ERROR = 4096
MAX_DEPTH = 64  # the converter recurses

SAYS_NOTHING = frozenset(
    {"$anchor", "$comment", "$defs", "$id", "$schema", "default", "definitions", "deprecated", "description", "example",
     "examples", "readOnly", "title", "writeOnly"}
)  # fmt: skip
FORMATS = frozenset({"date", "time", "date-time", "uuid", "uuid1", "uuid2", "uuid3", "uuid4", "uuid5"})
OBJECT = frozenset({"properties", "required", "additionalProperties"})
ARRAY = frozenset({"items", "prefixItems", "minItems", "maxItems"})
STRING = frozenset({"pattern", "format", "minLength", "maxLength"})
INTEGER = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
BY_TYPE = {"object": OBJECT, "array": ARRAY, "string": STRING, "integer": INTEGER}
BY_TYPE |= {"number": frozenset(), "boolean": frozenset(), "null": frozenset()}


def grammar_for_format(response_format: Mapping[str, Any]) -> str | None:
    """Of create_chat_completion(response_format=): {"type": "text"}, {"type": "json_object"} with or without "schema",
    or {"type": "json_schema", "json_schema": {"schema": ...}}. None for text. Raises DecodeError."""
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        schema = response_format.get("schema")
        return grammar_for_schema({"type": "object"} if schema is None else schema)
    if kind == "json_schema":
        inner = response_format.get("json_schema", response_format)  # some put the schema beside the type
        schema = inner.get("schema") if isinstance(inner, Mapping) else None
        if schema is None:
            raise DecodeError(
                'response_format has no schema, expected {"type": "json_schema", "json_schema": {"schema": ...}}'
            )
        return grammar_for_schema(schema)
    raise DecodeError(f"response_format has the type {kind!r}, expected text, json_object or json_schema")


# create_chat_completion()'s arguments behind the messages, in order, by which a tool is asked for.
ASKING = ("functions", "function_call", "tools", "tool_choice")


def asked_parameters(arguments: Mapping[str, Any]) -> Any:
    """The schema of the one tool that must be called; None if there is no such tool."""
    functions, function_call, tools, tool_choice = (arguments.get(name) for name in ASKING)
    if isinstance(tool_choice, Mapping) and tools:
        name, known = (tool_choice.get("function") or {}).get("name"), [tool.get("function") or {} for tool in tools]
    elif isinstance(function_call, Mapping) and functions:
        name, known = function_call.get("name"), functions
    else:
        return None
    return next((function.get("parameters") for function in known if function.get("name") == name), None)


def grammar_for_schema(schema: Any) -> str:
    """GBNF. Raises DecodeError for what is no schema, and for keywords that the grammar would not hold."""
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise DecodeError(f"the schema is no JSON ({error}), expected an object or its text") from None
    if schema is True or schema == {}:
        schema = {}  # any value
    _check(schema, "#", 0)
    schema = _simple(schema, schema, "#")
    try:
        text = json.dumps(schema, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise DecodeError(f"the schema is no JSON ({error}), expected an object of plain values") from None
    grammar = _convert(text)
    for where, pattern in _patterns(schema, "#"):
        if "root ::= string\n" in _convert(json.dumps({"type": "string", "pattern": pattern}).encode()):
            raise _not_held(
                where, "pattern", f"{pattern!r}: use ^...$ without look-around, classes such as \\d and anchors inside"
            )
    return grammar


def _convert(schema: bytes) -> str:
    room, needed, error = 1 << 16, ffi.new("size_t *"), ffi.new("char[]", N_ERROR)
    while True:
        grammar = ffi.new("char[]", room)
        if lib.pyskip_json_schema_grammar(schema, grammar, room, needed, error, N_ERROR) != lib.PYSKIP_STATUS_OK:
            reason = " ".join(ffi.string(error).decode("utf-8", "replace").split())
            raise DecodeError(f"the schema has no grammar ({reason.removeprefix('llama.cpp failed: ')}): change it")
        if needed[0] <= room:
            return ffi.string(grammar).decode()  # type: ignore[no-any-return]
        room = needed[0]


def _not_held(where: str, keyword: str, why: str = "") -> DecodeError:
    return DecodeError(
        f"the schema's {keyword} at {where} cannot be held by a grammar{why and ' (' + why + ')'}: leave it out and "
        "check the answer for it"
    )


def _children(schema: Mapping[str, Any], where: str) -> Iterator[tuple[Any, str]]:
    """Every schema in it, with where it stands."""
    for keyword in ("properties", "$defs", "definitions"):
        inside = schema.get(keyword)
        if isinstance(inside, Mapping):
            yield from ((child, f"{where}/{keyword}/{name}") for name, child in inside.items())
    for keyword in ("items", "prefixItems", "additionalProperties", "anyOf", "oneOf", "allOf"):
        inside = schema.get(keyword)
        if isinstance(inside, Mapping):
            yield inside, f"{where}/{keyword}"
        elif isinstance(inside, list):
            yield from ((child, f"{where}/{keyword}/{i}") for i, child in enumerate(inside))


def _patterns(schema: Any, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(schema, Mapping):
        if isinstance(schema.get("pattern"), str):
            yield where, schema["pattern"]
        for child, at in _children(schema, where):
            yield from _patterns(child, at)


def _check(schema: Any, where: str, depth: int) -> None:
    """Raises DecodeError unless every keyword is one that the converter holds where it stands."""
    if depth > MAX_DEPTH:
        raise DecodeError(f"the schema is nested deeper than {MAX_DEPTH}, expected less: use $ref")
    if not isinstance(schema, Mapping):
        raise DecodeError(f"the schema has {type(schema).__name__} at {where}, expected an object")
    held = _held(schema)
    for keyword in schema:
        if keyword not in held and keyword not in SAYS_NOTHING:
            raise _not_held(where, keyword)
    _check_values(schema, where)
    for child, at in _children(schema, where):
        _check(child, at, depth + 1)


def _held(schema: Mapping[str, Any]) -> frozenset[str]:
    """The keywords that decide in such a schema; the others are passed over (common/json-schema.cpp)."""
    for alone in ("$ref", "oneOf", "anyOf"):
        if alone in schema:
            return frozenset({alone})
    kind = schema.get("type")
    if isinstance(kind, list):
        held = frozenset({"type"}).union(*(_held({**schema, "type": one}) for one in kind if isinstance(one, str)))
        return held - INTEGER if "number" in kind else held
    for alone in ("const", "enum"):
        if alone in schema:
            return frozenset({alone, "type"})
    if kind is None:
        if "properties" in schema or schema.get("additionalProperties", True) is not True:
            return OBJECT
        if "allOf" in schema:
            return frozenset({"allOf"})
        if "items" in schema or "prefixItems" in schema:
            return ARRAY
        return STRING if schema.keys() & {"pattern", "minLength", "maxLength", "format"} else frozenset()
    if kind in ("object", "string") and "allOf" in schema and "properties" not in schema:
        return frozenset({"type", "allOf"})
    return BY_TYPE.get(str(kind), frozenset()) | {"type"}


# (least, most, by how much these must differ): llama.cpp's parser of grammars never ends on a repetition such as {3,2}.
BOUNDS = (
    ("minItems", "maxItems", 0),
    ("minLength", "maxLength", 0),
    ("minimum", "maximum", 0),
    ("minimum", "exclusiveMaximum", 1),
    ("exclusiveMinimum", "maximum", 1),
    ("exclusiveMinimum", "exclusiveMaximum", 2),
)


def _check_values(schema: Mapping[str, Any], where: str) -> None:
    """Of keywords that hold together with some values only."""
    if "format" in schema and schema["format"] not in FORMATS:
        raise _not_held(where, "format", repr(schema["format"]))
    decides = [keyword for keyword in ("pattern", "format") if keyword in schema]
    lengths = [keyword for keyword in ("minLength", "maxLength") if keyword in schema]
    if decides and len(decides) + len(lengths) > 1:
        raise _not_held(where, (decides[1:] + lengths)[0], f"beside {decides[0]}")
    tuples = [keyword for keyword in ("items", "prefixItems") if isinstance(schema.get(keyword), list)]
    if len({"items", "prefixItems"} & schema.keys()) > 1:
        raise _not_held(where, "prefixItems", "beside items")
    if tuples and {"minItems", "maxItems"} & schema.keys():
        raise _not_held(where, "minItems or maxItems", f"beside a list of {tuples[0]}")
    for low, high in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if low in schema and high in schema:
            raise _not_held(where, high, f"beside {low}")
    for low, high, gap in BOUNDS:
        least, most = schema.get(low), schema.get(high)
        if isinstance(least, (int, float)) and isinstance(most, (int, float)) and least + gap > most:
            raise DecodeError(
                f"the schema has {low} {least} and {high} {most} at {where}, which no value holds to: correct them"
            )
    missing = set(_texts(schema.get("required"))) - set(schema.get("properties") or {})
    if "required" in schema and missing:
        raise _not_held(where, "required", f"{min(missing)!r} is not among its properties")


def _texts(values: Any) -> list[str]:
    return [value for value in values if isinstance(value, str)] if isinstance(values, list) else []


def _simple(schema: Any, root: Any, where: str) -> Any:
    """With the one schema of an allOf in its place: the converter knows properties and enums there, and makes an empty
    object of all else. Raises DecodeError for what it would."""
    if isinstance(schema, list):
        return [_simple(child, root, f"{where}/{i}") for i, child in enumerate(schema)]
    if not isinstance(schema, Mapping):
        return schema
    parts = schema.get("allOf")
    if isinstance(parts, list) and schema.keys() - SAYS_NOTHING <= {"allOf", "type"}:
        if len(parts) == 1:
            definitions = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
            return _simple({**parts[0], **definitions}, root, f"{where}/allOf/0")
        kinds = [_all_of_kind(part, root) for part in parts]
        if any(kind not in ("properties", "enum") for kind in kinds) or len(set(kinds)) != 1:
            raise _not_held(where, "allOf", "expected objects with properties only, or enums only")
    return {
        key: value if key in ("const", "enum") else _simple(value, root, f"{where}/{key}")
        for key, value in schema.items()
    }


def _all_of_kind(part: Any, root: Any) -> str | None:
    """Which keyword an allOf's part is about, through its references."""
    for _ in range(MAX_DEPTH):
        if not (isinstance(part, Mapping) and isinstance(part.get("$ref"), str)):
            break
        target = root
        for name in part["$ref"].split("/")[1:]:
            target = target.get(name) if isinstance(target, Mapping) else None
        part = target
    if not isinstance(part, Mapping):
        return None
    left = part.keys() - SAYS_NOTHING - {"type", "required"}
    return next(iter(left)) if len(left) == 1 else None

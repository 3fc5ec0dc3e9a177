"""A JSON schema as a grammar, by llama.cpp's own converter; what that would pass over is refused by name
(native/src/schema-check.cpp)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..binding.library import ffi, lib
from ..errors import DecodeError

__all__ = ["ASKING", "asked_parameters", "grammar_for_format", "grammar_for_schema"]

N_ERROR = 4096


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
        except RecursionError:
            raise _too_deep() from None
    try:
        text = json.dumps({} if schema is True else schema, allow_nan=False).encode()
    except RecursionError:
        raise _too_deep() from None
    except (TypeError, ValueError) as error:
        raise DecodeError(f"the schema is no JSON ({error}), expected an object of plain values") from None
    return _convert(text)


def _too_deep() -> DecodeError:
    return DecodeError("the schema is nested deeper than 64, expected less: use $ref")


def _convert(schema: bytes) -> str:
    room, needed, error = 1 << 16, ffi.new("size_t *"), ffi.new("char[]", N_ERROR)
    while True:
        grammar = ffi.new("char[]", room)
        status = lib.pyskip_json_schema_grammar(schema, grammar, room, needed, error, N_ERROR)
        if status != lib.PYSKIP_STATUS_OK:
            reason = " ".join(ffi.string(error).decode("utf-8", "replace").split())
            if status != lib.PYSKIP_STATUS_INVALID:
                reason = f"the schema has no grammar ({reason.removeprefix('llama.cpp failed: ')}): change it"
            raise DecodeError(reason)
        if needed[0] <= room:
            return ffi.string(grammar).decode()  # type: ignore[no-any-return]
        room = needed[0]

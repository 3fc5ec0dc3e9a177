"""Calls of tools in an answer: JSON objects with a tool's name and its arguments, whatever a chat template puts around
them (<tool_call> of Hermes and Qwen, [TOOL_CALLS] of Mistral, Llama 3's bare object). For pyskip.llm_plugin.

llama.cpp's parser (common/chat.cpp) knows more forms; `pyskip serve` has it, and docs/compatibility.md says why this
has not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["ToolCall", "find_calls", "probe_call"]

# What a template puts before a call, at the end of the text before it.
OPENING = re.compile(r"(?:\s|<[^<>\s]{1,40}>|\[[A-Z_]{0,20}\]?|```\w*)*\Z")
PROBE = "pyskip_probe"
PROBE_ID = "probe0001"  # nine letters and digits, as Mistral's templates want them


@dataclass(frozen=True)
class ToolCall:
    name: str
    arguments: dict[str, Any]


def find_calls(text: str, names: Collection[str]) -> tuple[str, list[ToolCall]]:
    """The answer's text up to its first call of one of these tools, and the calls."""
    decoder, calls, first, at = json.JSONDecoder(), list[ToolCall](), len(text), 0
    while (start := text.find("{", at)) >= 0:
        at = start + 1
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        call = _call(value, names)
        if call is not None:
            calls.append(call)
            first, at = min(first, start), end
    return (OPENING.sub("", text[:first]) if calls else text), calls


def _call(value: Any, names: Collection[str]) -> ToolCall | None:
    name, arguments = value.get("name"), value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    return ToolCall(name, arguments) if name in list(names) and isinstance(arguments, dict) else None


def probe_call() -> tuple[Sequence[dict[str, Any]], ToolCall]:
    """A conversation with a call in it: find_calls() must find the call in what a template makes of that."""
    call = ToolCall(PROBE, {"pyskip_key": "pyskip_value"})
    function = {"name": call.name, "arguments": json.dumps(call.arguments)}
    calls = [{"id": PROBE_ID, "type": "function", "function": function}]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "w1"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "name": call.name, "tool_call_id": PROBE_ID, "content": "1"},
    ]
    return messages, call

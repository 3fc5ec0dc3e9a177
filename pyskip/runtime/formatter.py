"""Messages as a chat template wants them: text or typed parts, arguments as text or objects, an answer that was begun.

Templates differ in this, and what does not fit is mostly dropped without a word. What one takes is found by rendering a
message and looking for its text, as llama.cpp's own parser of templates does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from ..binding.library import llama_cpp

__all__ = ["MessageFormatter"]

NEEDLE = "pyskip-needle"
ASK = {"role": "user", "content": NEEDLE}
ARGUMENTS = {"pyskip_key": "pyskip_value"}


class MessageFormatter(llama_cpp.llama_chat_format.Jinja2ChatFormatter):  # type: ignore[misc]
    """A Jinja template. A last message that is the assistant's own is the beginning of the answer."""

    def __call__(self, *, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> Any:
        fitting = [self._fit(dict(message)) for message in messages]
        begun = ""
        if len(fitting) > 1 and fitting[-1].get("role") == "assistant" and not fitting[-1].get("tool_calls"):
            begun = _text(fitting.pop()["content"])
        response = super().__call__(messages=fitting, **kwargs)
        return replace(response, prompt=response.prompt + begun) if begun else response

    def _fit(self, message: dict[str, Any]) -> dict[str, Any]:
        content = message.get("content")
        if isinstance(content, str) and not self._takes_text and self._takes_parts:
            message["content"] = [{"type": "text", "text": content}]
        elif isinstance(content, list) and not self._takes_parts and all(_is_text(part) for part in content):
            message["content"] = _text(content)
        if message.get("tool_calls"):
            message["tool_calls"] = [self._fit_call(call) for call in message["tool_calls"]]
        return message

    def _fit_call(self, call: Any) -> Any:
        function = call.get("function") if isinstance(call, Mapping) else None
        arguments = function.get("arguments") if isinstance(function, Mapping) else None
        if isinstance(arguments, str) and self._wants_objects:
            try:
                arguments = json.loads(arguments)
            except ValueError:
                return call
        elif isinstance(arguments, Mapping) and not self._wants_objects:
            arguments = json.dumps(arguments, ensure_ascii=False)
        else:
            return call
        return {**call, "function": {**function, "arguments": arguments}}  # type: ignore[dict-item]

    @cached_property
    def _takes_text(self) -> bool:
        return NEEDLE in self._rendered([ASK])

    @cached_property
    def _takes_parts(self) -> bool:
        said = self._rendered([{"role": "user", "content": [{"type": "text", "text": NEEDLE}]}])
        return NEEDLE in said and not any(f"{quote}type{quote}" in said for quote in "\"'")  # else the list itself

    @cached_property
    def _wants_objects(self) -> bool:
        return not self._shows(json.dumps(ARGUMENTS)) and self._shows(ARGUMENTS)

    def _shows(self, arguments: Any) -> bool:
        """Whether a tool's arguments come out as they should, and not quoted once more."""
        function = {"name": "pyskip_tool", "arguments": arguments}
        call = {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "1", "type": "function", "function": function}],
        }
        said = self._rendered([self._fit(dict(ASK)), call])
        return "pyskip_key" in said and '\\"pyskip_key' not in said

    def _rendered(self, messages: list[dict[str, Any]]) -> str:
        """ "" where the template refuses them."""
        try:
            return str(super().__call__(messages=messages).prompt)
        except Exception:  # templates raise what they like
            return ""


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if _is_text(part))
    return "" if content is None else str(content)

"""Messages as a chat template wants them: text or typed parts, arguments as text or objects, an answer that was begun.

Templates differ in this, and what does not fit is mostly dropped without a word. What one takes is found by rendering a
message and looking for its text, as llama.cpp's own parser of templates does.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from jinja2.sandbox import SandboxedEnvironment

from ..binding.library import llama_cpp
from ..errors import DecodeError

__all__ = ["MessageFormatter", "flattened"]

NEEDLE = "pyskip-needle"
OTHER = {"role": "user", "content": "pyskip-other"}
ARGUMENTS = {"pyskip_key": "pyskip_value"}
ID = "pyskip001"  # nine letters and digits, as Mistral's templates want them


class MessageFormatter(llama_cpp.llama_chat_format.Jinja2ChatFormatter):  # type: ignore[misc]
    """A Jinja template. A last message that is the assistant's own is the beginning of the answer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._fits: dict[tuple[str, bool], bool] = {}
        # Some templates append to lists of their own, which upstream's sandbox forbids; messages here are copies.
        self._environment.environment.__class__ = SandboxedEnvironment

    def __call__(self, *, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> Any:
        for message in messages:
            _check_parts(message.get("content"))
        fitting = self._merged([self._fit(copy.deepcopy(dict(message))) for message in messages])
        begun = ""
        if len(fitting) > 1 and fitting[-1].get("role") == "assistant" and not fitting[-1].get("tool_calls"):
            begun = _text(fitting.pop()["content"])
        try:
            response = super().__call__(messages=fitting, **kwargs)
        except TypeError:
            if kwargs.get("tools") is not None:
                raise
            response = super().__call__(messages=fitting, **{**kwargs, "tools": []})  # it iterates them, asked or not
        return replace(response, prompt=response.prompt + begun) if begun else response

    @staticmethod
    def tojson(x: Any, ensure_ascii: bool = False, **kwargs: Any) -> str:
        """Jinja's filter, of what other filters yield, too."""
        return json.dumps(x, ensure_ascii=ensure_ascii, default=_listed, **kwargs)

    def _fit(self, message: dict[str, Any]) -> dict[str, Any]:
        if message.get("role") == "developer" and not self._has("developer"):
            message["role"] = "system"  # as it was called before
        role, content = str(message.get("role")), message.get("content")
        if isinstance(content, str) and not self._takes(role, parts=False) and self._takes(role, parts=True):
            message["content"] = [{"type": "text", "text": content}]
        elif (
            isinstance(content, list) and not self._takes(role, parts=True) and all(_is_text(part) for part in content)
        ):
            message["content"] = _text(content)
        elif content is None and "content" in message and message.get("tool_calls"):
            message["content"] = ""
        if message.get("tool_calls"):
            message["tool_calls"] = [self._fit_call(call) for call in message["tool_calls"]]
        return message

    def _merged(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Where a template has no system message, it comes before what the user says, as llama.cpp does it."""
        if len(messages) < 2 or [message.get("role") for message in messages[:2]] != ["system", "user"]:
            return messages
        if self._has("system"):
            return messages
        system, user, *others = messages
        head, content = _text(system.get("content")), user.get("content")
        merged = [{"type": "text", "text": head}, *content] if isinstance(content, list) else f"{head}\n{content}"
        return [{**user, "content": merged}, *others]

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

    def _has(self, role: str) -> bool:
        return self._takes(role, parts=False) or self._takes(role, parts=True)

    def _takes(self, role: str, parts: bool) -> bool:
        """Whether what a role says comes out, as text or as typed parts."""
        if (role, parts) not in self._fits:
            said: dict[str, Any] = {"role": role, "content": [{"type": "text", "text": NEEDLE}] if parts else NEEDLE}
            if role in ("tool", "function"):
                around = [OTHER, CALL, {**said, "name": "pyskip_tool", "tool_call_id": ID}]
            else:
                around = {"user": [said], "assistant": [OTHER, said, OTHER]}.get(role, [said, OTHER])
            shown = self._rendered(around)
            raw = any(f"{quote}type{quote}: {quote}text{quote}" in shown for quote in "\"'")  # the list itself
            self._fits[role, parts] = NEEDLE in shown and not raw
        return self._fits[role, parts]

    @cached_property
    def _wants_objects(self) -> bool:
        return not self._shows(json.dumps(ARGUMENTS)) and self._shows(ARGUMENTS)

    def _shows(self, arguments: Any) -> bool:
        """Whether a tool's arguments come out as they should, and not quoted once more."""
        said = self._rendered([self._fit(dict(OTHER)), _calling(arguments)])
        return "pyskip_key" in said and '\\"pyskip_key' not in said

    def _rendered(self, messages: list[dict[str, Any]]) -> str:
        """ "" where the template refuses them."""
        try:
            return str(super().__call__(messages=messages).prompt)
        except Exception:  # templates raise what they like
            return ""


def _calling(arguments: Any) -> dict[str, Any]:
    function = {"name": "pyskip_tool", "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"id": ID, "type": "function", "function": function}]}


CALL = _calling(json.dumps(ARGUMENTS))


def _listed(value: Any) -> Any:
    if isinstance(value, Iterator):
        return list(value)
    raise TypeError(f"{type(value).__name__} in a chat template, expected what JSON holds")


def _check_parts(content: Any) -> None:
    """Raises DecodeError for what the prompt could only show as the text of a Python object."""
    kinds = [part.get("type") for part in content if isinstance(part, Mapping)] if isinstance(content, list) else []
    others = [kind for kind in kinds if kind != "text"]
    if others:
        raise DecodeError(
            f"a message has a part of type {others[0]!r}, expected text: leave it out, or load the model with its "
            "projector (mmproj=, --mmproj)"
        )


def flattened(message: Mapping[str, Any]) -> dict[str, Any]:
    """With its parts of text as one."""
    content = message.get("content")
    is_text = isinstance(content, list) and all(map(_is_text, content))
    return {**message, "content": _text(content)} if is_text else dict(message)


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if _is_text(part))
    return "" if content is None else str(content)

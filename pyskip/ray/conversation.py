"""Which requests belong to one conversation, so that its later turns reach the replica that holds its prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

__all__ = ["SESSION_HEADER", "conversation"]

SESSION_HEADER = "x-session-id"  # Ray Serve's own name


def conversation(headers: Mapping[str, str], body: bytes) -> str:
    """A key that the turns of a conversation share: what the client says (the header x-session-id, or OpenAI's field
    prompt_cache_key), else a digest of how the conversation begins, up to its first message of the user's. Empty for a
    request that is no conversation. headers: by lower-case name."""
    if given := headers.get(SESSION_HEADER):
        return given
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(request, dict):
        return ""
    if given := request.get("prompt_cache_key"):
        return str(given)
    beginning = _beginning(request)
    if beginning is None:
        return ""
    return hashlib.sha256(json.dumps(beginning, sort_keys=True).encode()).hexdigest()


def _beginning(request: Mapping[str, Any]) -> list[Any] | None:
    """Of the APIs' three shapes: messages, with `system` or without, or `input` with `instructions`."""
    messages = request.get("messages", request.get("input"))
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, list) or not messages:
        return None
    told = [request.get("model"), request.get("system"), request.get("instructions")]
    for i, message in enumerate(messages):
        if isinstance(message, dict) and message.get("role") == "user":
            return [*told, *messages[: i + 1]]
    return [*told, *messages]

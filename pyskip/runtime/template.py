"""Chat templates: of a model's file or of the caller's. One that cannot be parsed must not keep a model out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from ..errors import ModelLoadError

__all__ = ["TEMPLATE", "check_template", "usable_metadata"]

TEMPLATE = "tokenizer.chat_template"


def check_template(template: str | None) -> None:
    """Raises ModelLoadError for a caller's template that cannot be parsed."""
    reason = None if template is None else _reason(template)
    if reason is not None:
        raise ModelLoadError(f"the chat template cannot be parsed ({reason}), expected Jinja: correct it")


def usable_metadata(metadata: Mapping[str, str], template: str | None, path: str) -> dict[str, str]:
    """A model's metadata with the caller's template, if there is one, for its own. Without templates that cannot be
    parsed, of which it warns."""
    usable = dict(metadata)
    if template is not None:
        usable[TEMPLATE] = template
    for name in [name for name in usable if name == TEMPLATE or name.startswith(f"{TEMPLATE}.")]:
        reason = _reason(usable[name])
        if reason is not None:
            del usable[name]
            warnings.warn(
                f"{path}: its {name} cannot be parsed ({reason}): chats use ChatML, give another with chat_template= "
                "(--chat-template)",
                UserWarning,
                stacklevel=6,
            )
    return usable


def _reason(template: str) -> str | None:
    """Why it cannot be parsed, in one line."""
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    try:
        Jinja2ChatFormatter(template, eos_token="", bos_token="")
    except Exception as error:  # Jinja's own errors, and what Python's parser raises at great depth
        return " ".join(str(error).split())[:200] or type(error).__name__
    return None

"""Requests: llama-cpp-python's types of OpenAI's bodies, with `skip`, and what clients send that those do not take."""

from __future__ import annotations

import json
import math
import re
from typing import Annotated, Any

import numpy as np
from llama_cpp.llama import LogitsProcessorList, MinTokensLogitsProcessor
from llama_cpp.llama_grammar import LlamaGrammar
from llama_cpp.server.types import CreateChatCompletionRequest, CreateCompletionRequest, CreateEmbeddingRequest
from pydantic import BaseModel, ConfigDict, Field, StrictBool, field_validator

from pyskip.policy import Policy, parse_skip

from .errors import bad_request

__all__ = ["ChatRequest", "CompletionRequest", "EmbeddingRequest", "StreamOptions", "TextRequest"]

MAX_STOPS = 16
MAX_SCHEMA = 32768  # characters of a JSON schema
MAX_REPEAT = 1000  # of what a schema counts
MAX_NUMBER = 1e15
MAX_PATTERN = 256  # characters
ROLES = ("system", "user", "assistant", "tool", "function")
FINITE = ConfigDict(allow_inf_nan=False, extra="ignore")

Temperature = Annotated[float, Field(ge=0, le=100)]
Penalty = Annotated[float, Field(gt=0, le=100)]


class StreamOptions(BaseModel):
    """OpenAI's stream_options."""

    include_usage: bool = False


class _Text(BaseModel):
    """What chat completions and completions have in common beyond upstream's fields."""

    skip: int | float | str | None = None
    skip_trace: StrictBool = False
    stream_options: StreamOptions | None = None

    @field_validator("skip", mode="before")
    @classmethod
    def _number_or_text(cls, skip: Any) -> Any:
        is_finite = not isinstance(skip, float) or math.isfinite(skip)
        if isinstance(skip, bool) or not isinstance(skip, (int, float, str, type(None))) or not is_finite:
            raise ValueError("expected a rate such as 0.25 or a specification such as 'off'")
        return skip

    def policy(self) -> Policy | None:
        """None: the model's own. Raises PolicyError."""
        return None if self.skip is None else parse_skip(self.skip)


def _checked_stop(stop: Any) -> Any:
    if (isinstance(stop, list) and (len(stop) > MAX_STOPS or "" in stop)) or stop == "":
        raise ValueError(f"expected up to {MAX_STOPS} texts, none of them empty")
    return stop


class CompletionRequest(_Text, CreateCompletionRequest):
    """POST /v1/completions."""

    model_config = FINITE

    max_tokens: int | None = Field(default=16, ge=1)
    temperature: Temperature = 0.8
    repeat_penalty: Penalty = 1.0

    @field_validator("prompt")
    @classmethod
    def _one_prompt(cls, prompt: str | list[str]) -> str:
        if isinstance(prompt, list):
            if len(prompt) != 1:
                raise ValueError(f"found {len(prompt)} prompts, expected one: send a request for each")
            return prompt[0]
        return prompt

    @field_validator("stop")
    @classmethod
    def _stop(cls, stop: Any) -> Any:
        return _checked_stop(stop)


class ChatRequest(_Text, CreateChatCompletionRequest):
    """POST /v1/chat/completions."""

    model_config = FINITE

    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)  # OpenAI's newer name
    temperature: Temperature = 0.8
    repeat_penalty: Penalty = 1.0

    @field_validator("messages", mode="before")
    @classmethod
    def _plain(cls, messages: Any) -> Any:
        """Text in parts as text, `developer` as `system`, no content as none: what templates of text models know."""
        if not isinstance(messages, list):
            return messages
        if not messages:
            raise ValueError("expected at least one message")
        return [_plain_message(message) if isinstance(message, dict) else message for message in messages]

    @field_validator("response_format", mode="before")
    @classmethod
    def _schema(cls, value: Any) -> Any:
        """OpenAI's json_schema as llama-cpp-python's json_object with a schema."""
        if isinstance(value, dict) and value.get("type") == "json_schema":
            inner = value.get("json_schema")
            if not isinstance(inner, dict) or not isinstance(inner.get("schema"), dict):
                raise ValueError('expected {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}')
            return {"type": "json_object", "schema": inner["schema"]}
        return value

    @field_validator("stop")
    @classmethod
    def _stop(cls, stop: Any) -> Any:
        return _checked_stop(stop)


def _plain_message(message: dict[str, Any]) -> dict[str, Any]:
    message = dict(message)
    if message.get("role") == "developer":
        message["role"] = "system"
    if message.get("role") not in ROLES:
        raise ValueError(f"found the role {message.get('role')!r:.60}, expected one of {', '.join(ROLES)}")
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) < len(parts):
            raise ValueError("found a part of content that is not text, expected text: the model reads nothing else")
        message["content"] = "".join(texts)
    elif content is None and message.get("role") == "assistant":
        message["content"] = ""
    return message


TextRequest = ChatRequest | CompletionRequest

_NOT_PASSED = {
    *("skip", "skip_trace", "stream_options", "max_completion_tokens"),  # ours
    *("n", "best_of", "user", "logprobs", "top_logprobs", "suffix", "echo", "model"),
    *("min_tokens", "logit_bias", "logit_bias_type", "grammar"),  # objects, to upstream
}


def upstream_arguments(request: TextRequest, llm: Any, max_tokens: int) -> dict[str, Any]:
    """Arguments for create_chat_completion() or create_completion() of a model. Raises APIError."""
    for name in ("n", "best_of"):
        if getattr(request, name, None) not in (None, 1):
            raise bad_request(f"{name} is {getattr(request, name)}, expected 1: send a request for each", name)
    for name in ("logprobs", "suffix", "grammar"):
        if getattr(request, name, None) not in (None, False):
            raise bad_request(f"{name} is not supported: leave it out", name)
    arguments = request.model_dump(exclude=_NOT_PASSED, exclude_none=True)
    asked = getattr(request, "max_completion_tokens", None) or request.max_tokens
    arguments["max_tokens"] = max_tokens if asked is None else min(asked, max_tokens)
    if request.temperature < 1e-3:  # divided by less, logits are no numbers
        arguments["temperature"] = 0.0
    if isinstance(request, ChatRequest):
        _check_schemas(request)
    if isinstance(request, ChatRequest) and request.tool_choice == "required":
        if len(request.tools or ()) != 1:
            raise bad_request("tool_choice is required, expected one tool with it, or a tool's name", "tool_choice")
        arguments["tool_choice"] = {"type": "function", "function": {"name": arguments["tools"][0]["function"]["name"]}}
    processors = _processors(request, llm)
    if processors:
        arguments["logits_processor"] = LogitsProcessorList(processors)
    return arguments


def _check_schemas(request: ChatRequest) -> None:
    """Upstream makes grammars of them, takes any JSON instead of what it cannot read, and however long it takes."""
    format_ = request.response_format
    if format_ is not None and "schema" in format_:
        _check_schema(format_["schema"], "response_format")
    for tool in request.tools or ():
        _check_schema(tool["function"]["parameters"], "tools")


def _check_schema(schema: Any, param: str) -> None:
    text = json.dumps(schema)
    if len(text) > MAX_SCHEMA:
        raise bad_request(f"the JSON schema has {len(text)} characters, expected up to {MAX_SCHEMA}", param)
    try:
        _check_bounds(schema)
        LlamaGrammar.from_json_schema(text)
    except Exception as error:  # the converter asserts, indexes and recurses as it goes
        reason = f"{type(error).__name__}: {error}"
        raise bad_request(f"no grammar can be made of the JSON schema ({reason})", param) from None


def _check_bounds(schema: Any) -> None:
    """Raises ValueError for what would become a grammar without end: a rule is written once for each repetition."""
    if isinstance(schema, dict):
        for key in ("minLength", "maxLength", "minItems", "maxItems"):
            if isinstance(schema.get(key), (int, float)) and not 0 <= schema[key] <= MAX_REPEAT:
                raise ValueError(f"{key} is {schema[key]!r:.40}, expected up to {MAX_REPEAT}")
        for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            if isinstance(schema.get(key), (int, float)) and not abs(schema[key]) <= MAX_NUMBER:
                raise ValueError(f"{key} is {schema[key]!r:.40}, expected up to {MAX_NUMBER:g} either way")
        pattern = schema.get("pattern", "")
        counts = [int(n[:9]) for n in re.findall(r"\d+", pattern)] if isinstance(pattern, str) else []
        if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN or re.search(r"[)}]\s*{", pattern):
            raise ValueError(f"pattern is expected to have up to {MAX_PATTERN} characters, and no groups with a count")
        if max(counts, default=0) > MAX_REPEAT:
            raise ValueError(f"pattern has the number {max(counts)}, expected up to {MAX_REPEAT}")
    for inner in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        _check_bounds(inner)


def _processors(request: TextRequest, llm: Any) -> list[Any]:
    processors: list[Any] = []
    if request.logit_bias:
        n_vocab, bias = llm.n_vocab(), {}
        for key, value in request.logit_bias.items():
            if request.logit_bias_type == "tokens":
                ids = llm.tokenize(key.encode("utf-8"), add_bos=False, special=True)
            else:
                ids = [int(key)] if key.isascii() and key.isdigit() and len(key) < 10 else [-1]
            if not all(0 <= token < n_vocab for token in ids) or not -100 <= value <= 100:
                raise bad_request(
                    f"logit_bias has {key!r}: {value:g}, expected tokens from 0 to {n_vocab - 1} and -100 to 100",
                    "logit_bias",
                )
            bias.update(dict.fromkeys(ids, value))

        def add_bias(_input_ids: Any, scores: Any) -> Any:
            scores = np.array(scores)
            scores[list(bias)] += list(bias.values())
            return scores

        processors.append(add_bias)
    if request.min_tokens > 0:
        processors.append(MinTokensLogitsProcessor(request.min_tokens, llm.token_eos()))
    return processors


class EmbeddingRequest(CreateEmbeddingRequest):
    """POST /v1/embeddings."""

    encoding_format: str = Field(default="float", pattern="^(float|base64)$")
    dimensions: int | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _no_tokens(cls, value: Any) -> Any:
        if isinstance(value, list) and value and not isinstance(value[0], str):
            raise ValueError(
                "found tokens, expected text: they are another model's (langchain: check_embedding_ctx_length=False)"
            )
        if value in ("", []) or (isinstance(value, list) and "" in value):
            raise ValueError("found no text, expected at least one that is not empty")
        return value

"""The app: routes, and the way of a request through them."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.types import Receive, Scope, Send

import pyskip
from pyskip.errors import PolicyError

from .errors import APIError, as_api_error, bad_request, install
from .limits import Guard, Limits
from .metrics import Metrics
from .requests import ChatRequest, CompletionRequest, EmbeddingRequest, TextRequest, upstream_arguments
from .served import Served, ServedLlama
from .trace import TracedText
from .turns import Turn, Turns

__all__ = ["Service", "create_app"]

PAGE = Path(__file__).with_name("page")
GONE = 499


class Service:
    """The models, and what happens to a request for one of them."""

    def __init__(self, models: dict[str, ServedLlama], settings: Limits) -> None:
        self.models, self.settings = models, settings
        self.metrics = Metrics()
        self.turns = Turns(settings.max_queue)
        self.metrics.queue_depth.set_function(lambda: self.turns.n_waiting)
        self.metrics.running.set_function(lambda: int(self.turns.is_busy))
        self.started = int(time.time())
        self.described = [_described(name, llm) for name, llm in models.items()]

    def model(self, name: str | None) -> tuple[str, ServedLlama]:
        """By its name; the first if none is given. Raises APIError."""
        if name is None:
            return next(iter(self.models.items()))
        if name not in self.models:
            known = ", ".join(self.models)
            raise APIError(
                404,
                f"the model {name!r} does not exist, expected one of {known}",
                param="model",
                code="model_not_found",
            )
        return name, self.models[name]

    async def text(self, http: Request, request: TextRequest) -> Response:
        """A chat completion or a completion, whole or as a stream."""
        name, llm = self.model(request.model)
        policy = request.policy()
        most = llm.n_ctx() if self.settings.max_tokens is None else self.settings.max_tokens
        echo = str(request.prompt) if isinstance(request, CompletionRequest) and request.echo else ""
        entered = time.perf_counter()

        def work(turn: Turn) -> None:
            self.metrics.began(name, time.perf_counter() - entered)
            run = Served(trace=request.skip_trace, is_cancelled=lambda: turn.is_cancelled)
            arguments = {"seed": secrets.randbits(32), **upstream_arguments(request, llm, most), "model": name}
            call: Callable[..., Any] = (
                llm.create_chat_completion if isinstance(request, ChatRequest) else llm.create_completion
            )
            traced = TracedText(run)
            try:
                with llm.running(run, policy):
                    if request.stream:
                        last: dict[str, Any] = {}
                        for chunk in call(**arguments):
                            text = _tidied(chunk, last)
                            if request.skip_trace and text:
                                chunk["skip_trace"] = traced.take(text)
                            if not last and echo:
                                chunk["choices"][0]["text"] = echo + text
                            last = chunk
                            turn.put(chunk)
                    else:
                        last = call(**arguments)
            finally:
                self.metrics.ran(name, llm, run)
            usage = {
                "prompt_tokens": run.n_prompt,
                "completion_tokens": run.n_generated,
                "total_tokens": run.n_prompt + run.n_generated,
                "prompt_tokens_details": {"cached_tokens": run.n_cached},
                "skip_rate": run.skip_rate,
                "tokens_per_second": run.tokens_per_second,
            }
            if not request.stream:
                last["usage"] = usage
                if request.skip_trace:
                    last["skip_trace"] = traced.take(_text_of(last))
                if echo:
                    last["choices"][0]["text"] = echo + last["choices"][0]["text"]
                turn.put(last)
            elif request.stream_options is not None and request.stream_options.include_usage:
                last.pop("skip_trace", None)
                turn.put({**last, "choices": [], "usage": usage})

        turn = Turn(llm, work)
        batches = turn.batches()
        first = await self._first(http, turn, batches)
        if first is None:
            return Response(status_code=GONE)
        if not request.stream:
            return JSONResponse(first[0])
        return _Stream(first, batches, lambda: self.turns.leave(turn))

    async def embeddings(self, http: Request, request: EmbeddingRequest) -> Response:
        name, llm = self.model(request.model)
        if not llm.context_params.embeddings:
            raise bad_request(f"the model {name!r} was loaded without --embedding", "model")
        if request.dimensions not in (None, llm.n_embd()):
            raise bad_request(f"dimensions is {request.dimensions}, expected {llm.n_embd()}", "dimensions")
        texts = [request.input] if isinstance(request.input, str) else request.input

        def work(turn: Turn) -> None:
            for i, text in enumerate(texts):
                n = len(llm.tokenize(text.encode("utf-8")))
                if n > llm.n_batch:
                    raise bad_request(
                        f"input {i} has {n} tokens, the model embeds up to {llm.n_batch}: split it",
                        "input",
                        "context_length_exceeded",
                    )
            answer = llm.create_embedding(texts, model=name)
            for item in answer["data"]:
                vector = np.asarray(item["embedding"], np.float64)
                if vector.ndim == 2:  # by token: the model has no pooling of its own
                    vector = vector.mean(axis=0)
                vector = vector.astype("<f4")
                is_packed = request.encoding_format == "base64"
                item["embedding"] = b64encode(vector.tobytes()).decode() if is_packed else vector.tolist()
            turn.put(answer)

        turn = Turn(llm, work)
        first = await self._first(http, turn, turn.batches())
        return Response(status_code=GONE) if first is None else JSONResponse(first[0])

    async def _first(self, http: Request, turn: Turn, batches: AsyncIterator[list[Any]]) -> list[Any] | None:
        """Wait for the turn and the first of its items. None if the client has gone, who then waits no more."""
        self.turns.enter(turn)
        first = asyncio.ensure_future(anext(batches))
        gone = asyncio.ensure_future(_until_gone(http))
        try:
            await asyncio.wait({first, gone}, return_when=asyncio.FIRST_COMPLETED)
            if first.done():
                return first.result()
            return None
        finally:
            if not first.done():
                self.turns.leave(turn)
                first.cancel()
            gone.cancel()

    def close(self) -> bool:
        """Stop what runs and free the models. Whether that could be done."""
        self.turns.close()
        if not self.turns.join(5):
            return False
        for llm in self.models.values():
            llm.close()
        return True


async def _until_gone(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _described(name: str, llm: ServedLlama) -> dict[str, Any]:
    """A model, for GET /pyskip/models."""
    skippable: tuple[int, ...] = ()
    with suppress(PolicyError):
        skippable = llm.skippable_layers
    profile = llm.profile
    return {
        "id": name,
        "n_layer": llm.engine.skip.n_layer,
        "n_ctx": llm.n_ctx(),
        "skippable": list(skippable),
        "skip": str(llm.skip),
        "target_tps": None if llm.pace is None else llm.pace.target_tps,
        "profile": None
        if profile is None
        else {
            "recommended": profile.recommended.rate,
            "curve": [
                {"rate": p.rate, "ppl_ratio": p.ppl_ratio, "ideal_speedup": p.ideal_speedup} for p in profile.curve
            ],
        },
    }


def _text_of(answer: dict[str, Any]) -> str:
    """What the model wrote, in a whole answer or a chunk."""
    choice = answer["choices"][0]
    if "text" in choice:
        return str(choice["text"])
    message = choice.get("message") or choice.get("delta") or {}
    calls = message.get("tool_calls") or ()
    return str(message.get("content") or "") + "".join(call["function"]["arguments"] for call in calls)


def _tidied(chunk: dict[str, Any], before: dict[str, Any]) -> str:
    """Upstream repeats a tool call's name and id in every chunk, and clients join what they get: leave the first. The
    chunk's text."""
    delta = chunk["choices"][0].get("delta")
    if delta is not None:
        chunk["choices"][0]["delta"] = delta = {
            k: v for k, v in delta.items() if v is not None and k != "function_call"
        }
        is_going_on = before and before["choices"][0].get("delta", {}).get("tool_calls")
        for call in delta.get("tool_calls", ()):
            if is_going_on:
                del call["id"], call["type"], call["function"]["name"]
    return _text_of(chunk)


class _Stream(StreamingResponse):
    """Server-sent events. Whoever waits for the turn hears that this answer needs it no more, however it ends."""

    media_type = "text/event-stream"

    def __init__(self, first: list[Any], batches: AsyncIterator[list[Any]], leave: Callable[[], None]) -> None:
        super().__init__(_events(first, batches), headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._leave = leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


async def _events(first: list[Any], batches: AsyncIterator[list[Any]]) -> AsyncIterator[bytes]:
    yield b"".join(map(_event, first))
    try:
        async for batch in batches:
            yield b"".join(map(_event, batch))
    except Exception as error:
        yield _event(as_api_error(error).body)
        return
    yield b"data: [DONE]\n\n"


def _event(item: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(item, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n\n"


def create_app(service: Service) -> FastAPI:
    """The ASGI app. Closing the service is the caller's."""
    app = FastAPI(title="pyskip", version=pyskip.__version__, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, settings=service.settings, metrics=service.metrics)
    install(app)

    @app.post("/v1/chat/completions")
    async def chat_completions(http: Request, request: ChatRequest) -> Response:
        return await service.text(http, request)

    @app.post("/v1/completions")
    async def completions(http: Request, request: CompletionRequest) -> Response:
        return await service.text(http, request)

    @app.post("/v1/embeddings")
    async def embeddings(http: Request, request: EmbeddingRequest) -> Response:
        return await service.embeddings(http, request)

    def card(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": service.started, "owned_by": "pyskip"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card(name) for name in service.models]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        return card(service.model(name)[0])

    @app.get("/pyskip/models")
    async def skip_models() -> dict[str, Any]:
        return {"data": service.described}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "models": list(service.models), "waiting": service.turns.n_waiting}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/")
    async def page() -> Response:
        return Response(_page(), media_type="text/html", headers={"Cache-Control": "no-cache"})

    app.mount("/page", _PageFiles(directory=PAGE, check_dir=False), name="page")
    return app


class _PageFiles(StaticFiles):
    """Asked for again each time, so that files of two releases never meet; unchanged, they are not sent again."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


def _page() -> bytes:
    try:
        return (PAGE / "index.html").read_bytes()
    except OSError:
        raise APIError(404, "this build has no page") from None

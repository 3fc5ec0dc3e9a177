"""A web service of one's own: POST /answer {"prompt": ..., "skip": ..., "n": ...} streams text, and stops when its
client leaves. (For OpenAI's API there is pyskip serve.)

    MODEL=demo uvicorn fastapi_app:app
    curl -N localhost:8000/answer -H 'Content-Type: application/json' -d '{"prompt": "The sky is", "skip": "0.25"}'
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from fastapi.concurrency import iterate_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

import pyskip


class Question(BaseModel):
    prompt: str = Field(min_length=1, max_length=2000)
    skip: str = "off"
    n: int = Field(64, ge=1, le=512)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.llm = pyskip.Llama(os.environ.get("MODEL", "demo"), n_ctx=2048, verbose=False)
    app.state.turn = asyncio.Lock()  # one decode at a time; the others wait without a thread
    yield
    app.state.llm.close()


app = FastAPI(lifespan=lifespan)


def pieces(llm: pyskip.Llama, question: Question, policy: pyskip.Policy) -> Iterator[str]:
    llm.skip = policy
    for chunk in llm.create_completion(question.prompt, max_tokens=question.n, stream=True):
        yield chunk["choices"][0]["text"]


@app.post("/answer")
async def answer(question: Question) -> StreamingResponse:
    try:
        policy = pyskip.parse_skip(question.skip)
    except pyskip.PolicyError as error:
        raise HTTPException(422, str(error)) from None

    async def stream() -> AsyncIterator[str]:
        async with app.state.turn:  # left with the stream, also when the client goes
            async for piece in iterate_in_threadpool(pieces(app.state.llm, question, policy)):
                yield piece

    return StreamingResponse(stream(), media_type="text/plain")

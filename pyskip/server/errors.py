"""Errors as OpenAI's clients expect them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import os
import re
import sys
import traceback
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from pyskip.errors import DecodeError, PolicyError, ProfileError

__all__ = ["APIError", "as_api_error", "bad_request", "install"]

MAX_MESSAGE = 500  # characters: a message repeats what was sent
OVERFLOW = re.compile(r"exceed context window|the prompt has \d+ tokens, the context")
FOLDERS = re.compile(r"/(?:[^\s/]+/)+")  # the server's, in paths
TYPES = {401: "authentication_error", 403: "permission_error", 404: "invalid_request_error", 429: "rate_limit_error"}


class APIError(Exception):
    """An answer other than 200."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers or {}

    @property
    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        message = str(self)
        message = message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 3] + "..."
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, status_code=self.status, headers=self.headers)


def bad_request(message: str, param: str | None = None, code: str | None = None) -> APIError:
    return APIError(400, message, param=param, code=code)


def as_api_error(error: BaseException) -> APIError:
    """What a client is told of an error. One that is nobody's fault but ours goes to stderr."""
    if isinstance(error, APIError):
        return error
    text = FOLDERS.sub("", " ".join(str(error).split()))
    if isinstance(error, (PolicyError, ProfileError)):
        return bad_request(text, param="skip", code="invalid_skip")
    if OVERFLOW.search(text):
        return bad_request(text, param="messages", code="context_length_exceeded")
    if isinstance(error, UnicodeEncodeError):
        return bad_request("a text has half of a surrogate pair, expected Unicode")
    if isinstance(error, HTTPException):
        return APIError(error.status_code, str(error.detail), headers=dict(error.headers or {}))
    if isinstance(error, ValueError) and not isinstance(error, (DecodeError, UnicodeError)):
        return bad_request(text)  # as chat templates and llama-cpp-python's own checks say it
    if os.environ.get("PYSKIP_DEBUG"):
        traceback.print_exception(error, file=sys.stderr)
    else:
        print(f"pyskip: {type(error).__name__}: {text}"[:MAX_MESSAGE], file=sys.stderr)
    return APIError(500, text if isinstance(error, DecodeError) else "internal error: the server's stderr says more")


def _invalid(error: RequestValidationError) -> APIError:
    """The first thing that is wrong, with where it is."""
    errors = error.errors()
    first = next((e for e in errors if e["type"] != "literal_error"), errors[0])  # not: is a message of another role
    where = [str(part) for part in first["loc"] if part != "body" and not str(part)[:1].isupper()]
    if first["type"] == "json_invalid":
        return bad_request(f"the body is not valid JSON ({first['ctx']['error']} at {where[0]})")
    if not where:
        return bad_request("the body is not a JSON object: send one, with Content-Type: application/json")
    return bad_request(f"{'.'.join(where)}: {first['msg']}", param=where[0])


def install(app: FastAPI) -> None:
    """Have every error of the app answered here."""

    async def on_invalid(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return _invalid(error).response()

    async def on_error(_request: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response()

    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_error)
    app.add_exception_handler(APIError, on_error)

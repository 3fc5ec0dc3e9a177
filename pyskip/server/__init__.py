"""`pyskip serve`: an OpenAI-compatible HTTP server, with a skip policy for each request.

A request is read and checked (limits, requests), waits for its turn (turns), decodes in the one thread that decodes
(served, of one of the models), and is answered in OpenAI's words (app, errors). llama_cpp.server gives the types of
requests, llama_cpp the chat handlers; its app is not used, since it runs one model at a time, hands every token to
another thread, and answers a malformed body with a 500.

Needs the extra `pyskip[server]`. Nothing else of pyskip imports it.
"""

from __future__ import annotations

__all__: list[str] = []

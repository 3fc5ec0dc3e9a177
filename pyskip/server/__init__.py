"""`pyskip serve`: llama.cpp's server with a skip policy for each request, as a program (native/server), and its page.

program.py finds the program and writes its command line; page/ is built into it.
"""

from __future__ import annotations

__all__: list[str] = []

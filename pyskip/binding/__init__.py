"""The native library: loading it, its status codes as exceptions, its log, crashes, and token pieces.

Only this package and `pyskip.runtime` call into C. llama_cpp is taken from `binding.library`, never imported directly,
so that it comes up on pyskip's own build.
"""

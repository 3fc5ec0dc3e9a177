"""llama.cpp's RPC server on a free port of the loopback, in a process of its own: `python rpc_server.py` prints the
port. The program rpc-server is not in llama-cpp-python's sources, but what it calls is in libggml-rpc."""

from __future__ import annotations

import ctypes
import socket

from pyskip.binding.library import LIB_DIR


def main() -> None:
    ggml, rpc = (ctypes.CDLL(str(LIB_DIR / f"lib{name}.so")) for name in ("ggml", "ggml-rpc"))
    ggml.ggml_backend_dev_by_type.restype = ctypes.c_void_p
    cpu = ctypes.c_void_p(ggml.ggml_backend_dev_by_type(0))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    print(port, flush=True)
    devices = (ctypes.c_void_p * 1)(cpu)
    start = rpc.ggml_backend_rpc_start_server
    start(f"127.0.0.1:{port}".encode(), None, ctypes.c_size_t(1), ctypes.c_size_t(1), devices)


if __name__ == "__main__":
    main()

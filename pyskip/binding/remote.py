"""Layers on other machines, by llama.cpp's RPC back end: devices that stand for the servers there."""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Sequence
from typing import Any

from ..errors import ModelLoadError
from .files import library_file
from .library import LIB_DIR

__all__ = ["remote_devices"]

SECONDS = 10  # for a server to take a connection


def remote_devices(servers: Sequence[str]) -> Any:
    """An array of ggml_backend_dev_t that ends with a null, for llama_model_params: the devices of servers named
    HOST:PORT. Raises ModelLoadError for one that is not there; it is to be llama.cpp's own rpc-server of the same
    release."""
    rpc = _library("ggml-rpc")
    rpc.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
    base = _library("ggml-base")
    base.ggml_backend_reg_dev_get.restype = ctypes.c_void_p
    base.ggml_backend_reg_dev_count.restype = ctypes.c_size_t
    devices: list[int] = []
    for server in servers:
        _check(server)
        found = ctypes.c_void_p(rpc.ggml_backend_rpc_add_server(server.encode()))
        if not found:
            raise ModelLoadError(
                f"rpc_servers: {server} has no device, expected llama.cpp's rpc-server: start it there"
            )
        for i in range(base.ggml_backend_reg_dev_count(found)):
            devices.append(base.ggml_backend_reg_dev_get(found, ctypes.c_size_t(i)))
    return (ctypes.c_void_p * (len(devices) + 1))(*devices, None)


def _library(name: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(library_file(LIB_DIR, name)))
    except OSError as error:
        raise ModelLoadError(f"this build of pyskip has no RPC back end ({error}): install pyskip again") from None


def _check(server: str) -> None:
    """llama.cpp ends the process if nobody answers."""
    host, colon, port = server.rpartition(":")
    if not (host and colon and port.isdecimal()):
        raise ModelLoadError(f"rpc_servers: {server!r}, expected HOST:PORT")
    try:
        socket.create_connection((host, int(port)), SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ModelLoadError(
            f"rpc_servers: {server} is not there ({error}): start llama.cpp's rpc-server there"
        ) from None

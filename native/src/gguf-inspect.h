// What a GGUF file says of its model, before anything is loaded. Called by api.cpp; needs no context.

#pragma once

#include "pyskip.h"

#include <string>

// False with a line in `error` if the file cannot be read, is not GGUF, or is shorter than its header says.
bool pyskip_gguf_read(const char * path, pyskip_gguf_info & info, std::string & error);

// bytes[il]: of the FFN weights of layer il that a token reads, for n layers.
bool pyskip_gguf_read_ffn(const char * path, int64_t * bytes, size_t n, std::string & error);

// Opening a GGUF file: what upstream's reader must never be given is refused first. Called by gguf-inspect.cpp (models)
// and profile.cpp. Paths are UTF-8 on every system.

#pragma once

#include "gguf.h"

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

struct pyskip_gguf_deleter {
    void operator()(gguf_context * ctx) const { gguf_free(ctx); }
};
using pyskip_gguf_ptr = std::unique_ptr<gguf_context, pyskip_gguf_deleter>;

// Whether the file is a regular one that starts with GGUF. `kind` is what it should be, "model" or "profile". Sets its
// size; false with a line in `error`.
bool pyskip_gguf_check(const char * path, const std::string & kind, int64_t & size, std::string & error);

// Whether a file of that size holds the whole of tensor i. Its sizes are the file's own word, up to 2^64 - 1.
bool pyskip_gguf_holds(const gguf_context * gguf, int64_t i, int64_t size);

struct pyskip_file_deleter {
    void operator()(std::FILE * file) const { std::fclose(file); }
};
using pyskip_file_ptr = std::unique_ptr<std::FILE, pyskip_file_deleter>;

// For reading; null if it cannot be opened.
pyskip_file_ptr pyskip_file_open(const char * path);

// Whether there was a file, with n bytes at the offset, which may lie beyond 2 GiB; they are in `data` then.
bool pyskip_file_read(std::FILE * file, int64_t offset, void * data, size_t n);

#include "gguf-file.h"

#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>

static bool fail(std::string & error, const char * path, const std::string & found) {
    error = std::string(path) + ": " + found;
    return false;
}

bool pyskip_gguf_check(const char * path, const std::string & kind, int64_t & size, std::string & error) {
    namespace fs = std::filesystem;
    std::error_code ec;
    const auto      status = fs::status(path, ec);
    if (status.type() == fs::file_type::not_found) {
        return fail(error, path, "no such file: check the path");
    }
    if (ec) {
        return fail(error, path, "cannot be looked at (" + ec.message() + "): check the path and its permissions");
    }
    if (fs::is_directory(status)) {
        return fail(error, path, "is a directory, expected a GGUF file: name the .gguf file in it");
    }
    if (!fs::is_regular_file(status)) {
        return fail(error, path, "is not a regular file, expected a GGUF file");
    }
    std::FILE * file = std::fopen(path, "rb");
    if (!file) {
        return fail(error, path, "cannot be opened for reading: check its permissions");
    }
    char         magic[4] = {};
    const size_t n_read   = std::fread(magic, 1, sizeof(magic), file);
    std::fclose(file);
    size = (int64_t) fs::file_size(path, ec);
    if (size == 0) {
        return fail(error, path, "is empty, expected a GGUF file: download it again");
    }
    if (n_read != sizeof(magic) || std::memcmp(magic, "GGUF", 4) != 0) {
        return fail(error, path,
                    "does not start with GGUF, expected a GGUF " + kind +
                        (kind == "model" ? ": convert it with llama.cpp's convert_hf_to_gguf.py"
                                         : ": make one with pyskip calibrate"));
    }
    return true;
}

bool pyskip_gguf_holds(const gguf_context * gguf, int64_t i, int64_t size) {
    uint64_t left = (uint64_t) size;
    for (const uint64_t part :
         { gguf_get_data_offset(gguf), gguf_get_tensor_offset(gguf, i), gguf_get_tensor_size(gguf, i) }) {
        if (part > left) {
            return false;
        }
        left -= part;
    }
    return true;
}

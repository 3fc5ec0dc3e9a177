#include "gguf-file.h"

#include "ggml.h"

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
    const fs::path  place  = fs::u8path(path);
    const auto      status = fs::status(place, ec);
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
    const pyskip_file_ptr file = pyskip_file_open(path);
    if (!file) {
        return fail(error, path, "cannot be opened for reading: check its permissions");
    }
    char       magic[4] = {};
    const bool is_read  = pyskip_file_read(file.get(), 0, magic, sizeof(magic));
    size                = (int64_t) fs::file_size(place, ec);
    if (size == 0) {
        return fail(error, path, "is empty, expected a GGUF file: download it again");
    }
    if (!is_read || std::memcmp(magic, "GGUF", 4) != 0) {
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

pyskip_file_ptr pyskip_file_open(const char * path) {
    return pyskip_file_ptr(ggml_fopen(path, "rb"));
}

bool pyskip_file_read(std::FILE * file, int64_t offset, void * data, size_t n) {
#if defined(_WIN32)
    const bool is_there = file && _fseeki64(file, offset, SEEK_SET) == 0;
#else
    const bool is_there = file && fseeko(file, (off_t) offset, SEEK_SET) == 0;
#endif
    return is_there && std::fread(data, 1, n, file) == n;
}

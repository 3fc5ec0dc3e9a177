#include "gguf-inspect.h"

#include "ggml.h"
#include "gguf-file.h"
#include "gguf.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace {

bool fail(std::string & error, const char * path, const std::string & found) {
    error = std::string(path) + ": " + found;
    return false;
}

void read_text(const gguf_context * gguf, const char * key, char * out, size_t n_out) {
    out[0]           = '\0';
    const int64_t id = gguf_find_key(gguf, key);
    if (id >= 0 && gguf_get_kv_type(gguf, id) == GGUF_TYPE_STRING) {
        std::snprintf(out, n_out, "%s", gguf_get_val_str(gguf, id));
    }
}

// The i-th value of an integer or of an array of integers; 0 where there is none.
int64_t read_int(const gguf_context * gguf, const std::string & key, int64_t i, int64_t missing) {
    const int64_t id = gguf_find_key(gguf, key.c_str());
    if (id < 0) {
        return missing;
    }
    gguf_type    type = gguf_get_kv_type(gguf, id);
    const void * data = nullptr;
    if (type == GGUF_TYPE_ARRAY) {
        type = gguf_get_arr_type(gguf, id);
        if (i >= (int64_t) gguf_get_arr_n(gguf, id) || type == GGUF_TYPE_STRING) {
            return missing;
        }
        data = gguf_get_arr_data(gguf, id);
    } else if (type == GGUF_TYPE_STRING) {
        return missing;
    } else {
        data = gguf_get_val_data(gguf, id);
        i    = 0;
    }
    switch (type) {
        case GGUF_TYPE_UINT32: return ((const uint32_t *) data)[i];
        case GGUF_TYPE_INT32:  return ((const int32_t *) data)[i];
        case GGUF_TYPE_UINT64: return (int64_t) ((const uint64_t *) data)[i];
        case GGUF_TYPE_INT64:  return ((const int64_t *) data)[i];
        default:               return missing;
    }
}

bool starts_with(const char * text, const char * prefix) {
    return std::strncmp(text, prefix, std::strlen(prefix)) == 0;
}

// The layer of a decoder's FFN weight, else -1. Names as in pyskip_ffn_down_layer().
int64_t ffn_layer(const char * name) {
    const char * blk = starts_with(name, "dec.") ? name + 4 : name;
    const char * dot = starts_with(blk, "blk.") ? std::strchr(blk + 4, '.') : nullptr;
    for (const char * part : { ".ffn_up", ".ffn_gate", ".ffn_down", ".channel_mix_" }) {
        if (dot && starts_with(dot, part)) {
            return std::atol(blk + 4);
        }
    }
    return -1;
}

// How much of a tensor decoding one token reads.
class reading {
public:
    explicit reading(const gguf_context * gguf) : gguf(gguf) {
        char arch[64];
        read_text(gguf, "general.architecture", arch, sizeof(arch));
        n_expert = read_int(gguf, std::string(arch) + ".expert_count", 0, 0);
        n_used   = read_int(gguf, std::string(arch) + ".expert_used_count", 0, n_expert);
        is_tied  = gguf_find_tensor(gguf, "output.weight") < 0;
    }

    int64_t bytes(int64_t i) const {
        const char *  name  = gguf_get_tensor_name(gguf, i);
        const int64_t whole = (int64_t) gguf_get_tensor_size(gguf, i);
        if ((std::strcmp(name, "token_embd.weight") == 0 && !is_tied) || starts_with(name, "enc.")) {
            return 0;
        }
        return std::strstr(name, "_exps") && n_expert > 0 ? whole / n_expert * n_used : whole;
    }

private:
    const gguf_context * gguf;
    int64_t              n_expert = 0;
    int64_t              n_used   = 0;
    bool                 is_tied  = false;
};

bool read_tensors(const gguf_context * gguf, const char * path, int64_t size, pyskip_gguf_info & info, std::string & error) {
    const reading read(gguf);
    const int64_t data_offset = (int64_t) gguf_get_data_offset(gguf);

    info.n_tensors = gguf_get_n_tensors(gguf);
    for (int64_t i = 0; i < info.n_tensors; ++i) {
        const int64_t   bytes = (int64_t) gguf_get_tensor_size(gguf, i);
        const ggml_type type  = gguf_get_tensor_type(gguf, i);
        const int64_t   end   = data_offset + (int64_t) gguf_get_tensor_offset(gguf, i) + bytes;
        if (end > size) {
            return fail(error, path, "is cut off: tensor " + std::string(gguf_get_tensor_name(gguf, i)) + " ends at byte " +
                        std::to_string(end) + ", the file has " + std::to_string(size) + ": download it again");
        }
        info.bytes      += bytes;
        info.read_bytes += read.bytes(i);
        info.n_params += bytes / (int64_t) ggml_type_size(type) * ggml_blck_size(type);
        if (ffn_layer(gguf_get_tensor_name(gguf, i)) >= 0) {
            info.ffn_bytes      += bytes;
            info.read_ffn_bytes += read.bytes(i);
        }
    }
    return true;
}

// FNV-1a.
struct hasher {
    uint64_t value = 0xcbf29ce484222325u;

    void add(const void * data, size_t n) {
        for (size_t i = 0; i < n; ++i) {
            value = (value ^ ((const uint8_t *) data)[i]) * 0x100000001b3u;
        }
    }
};

// Names, types and sizes of all tensors, and some bytes from the middle of every FFN weight.
bool read_fingerprint(const gguf_context * gguf, const char * path, pyskip_gguf_info & info, std::string & error) {
    const std::unique_ptr<std::FILE, int (*)(std::FILE *)> file(std::fopen(path, "rb"), std::fclose);
    hasher hash;
    for (int64_t i = 0; i < info.n_tensors; ++i) {
        const char *  name = gguf_get_tensor_name(gguf, i);
        const int32_t type = gguf_get_tensor_type(gguf, i);
        const int64_t size = (int64_t) gguf_get_tensor_size(gguf, i);
        hash.add(name, std::strlen(name));
        hash.add(&type, sizeof(type));
        hash.add(&size, sizeof(size));
        if (ffn_layer(name) < 0) {
            continue;
        }
        char         sample[64] = {};
        const size_t n          = (size_t) std::min<int64_t>(size, sizeof(sample));
        const size_t offset     = gguf_get_data_offset(gguf) + gguf_get_tensor_offset(gguf, i) + (size - n) / 2;
        if (!file || std::fseek(file.get(), (long) offset, SEEK_SET) != 0 || std::fread(sample, 1, n, file.get()) != n) {
            return fail(error, path, "cannot be read at tensor " + std::string(name) + ": download it again");
        }
        hash.add(sample, n);
    }
    std::snprintf(info.fingerprint, sizeof(info.fingerprint), "fnv1a64:%016llx", (unsigned long long) hash.value);
    return true;
}

void read_shape(const gguf_context * gguf, pyskip_gguf_info & info) {
    const std::string arch = std::string(info.architecture) + ".";

    info.n_layer     = read_int(gguf, arch + "decoder_block_count", 0, read_int(gguf, arch + "block_count", 0, 0));
    info.n_ctx_train = read_int(gguf, arch + "context_length", 0, 0);
    info.n_positions = gguf_find_tensor(gguf, "position_embd.weight") >= 0 ? info.n_ctx_train : 0;
    info.n_embd      = read_int(gguf, arch + "embedding_length", 0, 0);

    const int64_t n_layer = std::min<int64_t>(std::max<int64_t>(info.n_layer, 0), 4096);
    for (int64_t il = 0; il < n_layer; ++il) {
        const int64_t n_head    = read_int(gguf, arch + "attention.head_count", il, 0);
        const int64_t n_head_kv = read_int(gguf, arch + "attention.head_count_kv", il, n_head);
        const int64_t n_head_default = n_head > 0 ? info.n_embd / n_head : 0;
        const int64_t n_k       = read_int(gguf, arch + "attention.key_length", 0, n_head_default);
        const int64_t n_v       = read_int(gguf, arch + "attention.value_length", 0, n_head_default);
        info.n_ff               = std::max(info.n_ff, read_int(gguf, arch + "feed_forward_length", il, 0));
        info.kv_bytes_per_token += n_head_kv * (n_k + n_v) * 2;
    }
}

} // namespace

static bool open_model(const char * path, int64_t & size, pyskip_gguf_ptr & gguf, std::string & error) {
    if (!pyskip_gguf_check(path, "model", size, error)) {
        return false;
    }
    const gguf_init_params params = { /*.no_alloc =*/ true, /*.ctx =*/ nullptr };
    gguf.reset(gguf_init_from_file(path, params));
    return gguf || fail(error, path, "has a GGUF header that llama.cpp cannot read (cut off, damaged, or of a newer version): download it again");
}

bool pyskip_gguf_read_ffn(const char * path, int64_t * bytes, size_t n, std::string & error) {
    int64_t         size = 0;
    pyskip_gguf_ptr gguf;
    if (!open_model(path, size, gguf, error)) {
        return false;
    }
    const reading read(gguf.get());
    std::fill(bytes, bytes + n, 0);
    for (int64_t i = 0; i < gguf_get_n_tensors(gguf.get()); ++i) {
        const int64_t il = ffn_layer(gguf_get_tensor_name(gguf.get(), i));
        if (il < 0 || il >= (int64_t) n) {
            continue;
        }
        bytes[il] += read.bytes(i);
    }
    return true;
}

bool pyskip_gguf_read(const char * path, pyskip_gguf_info & info, std::string & error) {
    info = {};
    int64_t         size = 0;
    pyskip_gguf_ptr gguf;
    if (!open_model(path, size, gguf, error)) {
        return false;
    }
    read_text(gguf.get(), "general.architecture", info.architecture, sizeof(info.architecture));
    read_text(gguf.get(), "general.name", info.name, sizeof(info.name));
    info.has_chat_template = gguf_find_key(gguf.get(), "tokenizer.chat_template") >= 0;
    if (!read_tensors(gguf.get(), path, size, info, error)) {
        return false;
    }
    read_shape(gguf.get(), info);
    return read_fingerprint(gguf.get(), path, info, error);
}

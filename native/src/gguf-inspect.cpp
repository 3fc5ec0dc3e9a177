#include "gguf-inspect.h"

#include "ggml.h"
#include "gguf-file.h"
#include "gguf.h"

#include <algorithm>
#include <cmath>
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

constexpr int64_t MAX_SIZE = 1 << 20; // of heads, experts and the like: products of three fit into 64 bits

// The i-th value of an integer or of an array of integers; `missing` where there is none, or none from 0 to 2^31 - 1.
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
    int64_t value = -1;
    switch (type) {
        case GGUF_TYPE_UINT32: value = ((const uint32_t *) data)[i]; break;
        case GGUF_TYPE_INT32:  value = ((const int32_t *) data)[i]; break;
        case GGUF_TYPE_UINT64: value = (int64_t) ((const uint64_t *) data)[i]; break;
        case GGUF_TYPE_INT64:  value = ((const int64_t *) data)[i]; break;
        default:               break;
    }
    return value >= 0 && value <= INT32_MAX ? value : missing;
}

bool is_ffn(const char * name) {
    if (std::strncmp(name, "blk.", 4) != 0) {
        return false;
    }
    const char * dot = std::strchr(name + 4, '.');
    return dot && (std::strncmp(dot, ".ffn_up", 7) == 0 || std::strncmp(dot, ".ffn_gate", 9) == 0 ||
                   std::strncmp(dot, ".ffn_down", 9) == 0);
}

// Weights that matrices are multiplied with, rows looked up in or vectors scaled by. Others may hold integers.
bool is_computed_with(const char * name) {
    const bool is_block = std::strncmp(name, "blk.", 4) == 0 && (std::strstr(name, ".attn_") || std::strstr(name, ".ffn_"));
    return (is_block && !std::strstr(name, "_tid2eid")) || std::strncmp(name, "token_embd.", 11) == 0 ||
           std::strncmp(name, "output", 6) == 0;
}

// What llama.cpp takes on trust, and crashes or aborts on in the first decode.
bool check_numbers(const gguf_context * gguf, const char * path, const std::string & arch, std::string & error) {
    for (int64_t i = 0; i < gguf_get_n_tensors(gguf); ++i) {
        const ggml_type type = gguf_get_tensor_type(gguf, i);
        if (is_computed_with(gguf_get_tensor_name(gguf, i)) && type != GGML_TYPE_F32 && !ggml_get_type_traits(type)->to_float) {
            return fail(error, path, "tensor " + std::string(gguf_get_tensor_name(gguf, i)) + " is " + ggml_type_name(type) +
                        ", expected floats or a quantised type: the file is damaged, download it again");
        }
    }
    for (const char * name : { "layer_norm_epsilon", "layer_norm_rms_epsilon", "group_norm_epsilon" }) {
        const std::string key = arch + ".attention." + name;
        const int64_t     id  = gguf_find_key(gguf, key.c_str());
        if (id < 0 || gguf_get_kv_type(gguf, id) != GGUF_TYPE_FLOAT32) {
            continue;
        }
        const float epsilon = gguf_get_val_f32(gguf, id);
        if (!(epsilon >= 0.0f && std::isfinite(epsilon))) {
            return fail(error, path, key + " is " + std::to_string(epsilon) + ", expected a number from 0: the file is "
                        "damaged, download it again");
        }
    }
    return true;
}

// How much of a tensor decoding one token reads.
class reading {
public:
    explicit reading(const gguf_context * gguf) : gguf(gguf) {
        char arch[64];
        read_text(gguf, "general.architecture", arch, sizeof(arch));
        n_expert = read_int(gguf, std::string(arch) + ".expert_count", 0, 0);
        n_used   = std::min(read_int(gguf, std::string(arch) + ".expert_used_count", 0, n_expert), n_expert);
        is_tied  = gguf_find_tensor(gguf, "output.weight") < 0;
    }

    int64_t bytes(int64_t i) const {
        const char *  name  = gguf_get_tensor_name(gguf, i);
        const int64_t whole = (int64_t) gguf_get_tensor_size(gguf, i);
        if (std::strcmp(name, "token_embd.weight") == 0 && !is_tied) {
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

    info.n_tensors = gguf_get_n_tensors(gguf);
    for (int64_t i = 0; i < info.n_tensors; ++i) {
        const ggml_type type = gguf_get_tensor_type(gguf, i);
        if (!pyskip_gguf_holds(gguf, i, size)) {
            return fail(error, path, "is cut off: tensor " + std::string(gguf_get_tensor_name(gguf, i)) + " has " +
                        std::to_string(gguf_get_tensor_size(gguf, i)) + " bytes from byte " +
                        std::to_string(gguf_get_data_offset(gguf) + gguf_get_tensor_offset(gguf, i)) + ", the file " +
                        std::to_string(size) + ": download it again");
        }
        const int64_t bytes = (int64_t) gguf_get_tensor_size(gguf, i);
        info.bytes      += bytes;
        info.read_bytes += read.bytes(i);
        info.n_params += bytes / (int64_t) ggml_type_size(type) * ggml_blck_size(type);
        if (is_ffn(gguf_get_tensor_name(gguf, i))) {
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
        if (!is_ffn(name)) {
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

    info.n_layer     = read_int(gguf, arch + "block_count", 0, 0);
    info.n_ctx_train = read_int(gguf, arch + "context_length", 0, 0);
    info.n_embd      = read_int(gguf, arch + "embedding_length", 0, 0);

    const int64_t n_layer = std::min<int64_t>(std::max<int64_t>(info.n_layer, 0), 4096);
    for (int64_t il = 0; il < n_layer; ++il) {
        const int64_t n_head    = read_int(gguf, arch + "attention.head_count", il, 0);
        const int64_t n_head_kv = std::min(MAX_SIZE, read_int(gguf, arch + "attention.head_count_kv", il, n_head));
        const int64_t n_head_default = n_head > 0 ? info.n_embd / n_head : 0;
        const int64_t n_k = std::min(MAX_SIZE, read_int(gguf, arch + "attention.key_length", 0, n_head_default));
        const int64_t n_v = std::min(MAX_SIZE, read_int(gguf, arch + "attention.value_length", 0, n_head_default));
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
        const char *  name = gguf_get_tensor_name(gguf.get(), i);
        const int64_t il   = is_ffn(name) ? std::atol(name + 4) : -1;
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
    if (!read_tensors(gguf.get(), path, size, info, error) || !check_numbers(gguf.get(), path, info.architecture, error)) {
        return false;
    }
    read_shape(gguf.get(), info);
    return read_fingerprint(gguf.get(), path, info, error);
}

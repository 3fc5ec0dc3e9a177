#include "gguf-inspect.h"

#include "ggml.h"
#include "gguf-file.h"
#include "gguf-projector.h"
#include "gguf.h"
#include "llama.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

namespace {

// A model is one file, or several that gguf-split made of it: then all keys are in the first.
struct piece {
    std::string     path;
    int64_t         size = 0;
    pyskip_gguf_ptr gguf;
};
using pieces = std::vector<piece>;

bool fail(std::string & error, const std::string & path, const std::string & found) {
    error = path + ": " + found;
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

// The i-th value of an integer or of an array of integers; `missing` if there is none, or none from 0 to 2^31 - 1.
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
        case GGUF_TYPE_INT32: value = ((const int32_t *) data)[i]; break;
        case GGUF_TYPE_UINT64: value = (int64_t) ((const uint64_t *) data)[i]; break;
        case GGUF_TYPE_INT64: value = ((const int64_t *) data)[i]; break;
        default: break;
    }
    return value >= 0 && value <= INT32_MAX ? value : missing;
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

// Weights that matrices are multiplied with, rows looked up in or vectors scaled by. Others may hold integers.
bool is_computed_with(const char * name) {
    const bool is_block =
        std::strncmp(name, "blk.", 4) == 0 && (std::strstr(name, ".attn_") || std::strstr(name, ".ffn_"));
    return (is_block && !std::strstr(name, "_tid2eid")) || std::strncmp(name, "token_embd.", 11) == 0 ||
           std::strncmp(name, "output", 6) == 0;
}

// What llama.cpp takes on trust, and crashes or aborts on in the first decode.
bool check_numbers(const piece & part, const std::string & arch, std::string & error) {
    const gguf_context * gguf = part.gguf.get();
    for (int64_t i = 0; i < gguf_get_n_tensors(gguf); ++i) {
        const ggml_type type = gguf_get_tensor_type(gguf, i);
        if (is_computed_with(gguf_get_tensor_name(gguf, i)) && type != GGML_TYPE_F32 &&
            !ggml_get_type_traits(type)->to_float) {
            return fail(error, part.path,
                        "tensor " + std::string(gguf_get_tensor_name(gguf, i)) + " is " + ggml_type_name(type) +
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
            return fail(error, part.path,
                        key + " is " + std::to_string(epsilon) +
                            ", expected a number from 0: the file is "
                            "damaged, download it again");
        }
    }
    return true;
}

// How much of a tensor decoding one token reads.
class reading {
public:
    explicit reading(const pieces & model) {
        char                 arch[64];
        const gguf_context * first = model.front().gguf.get();
        read_text(first, "general.architecture", arch, sizeof(arch));
        n_expert = read_int(first, std::string(arch) + ".expert_count", 0, 0);
        n_used   = std::min(read_int(first, std::string(arch) + ".expert_used_count", 0, n_expert), n_expert);
        is_tied  = std::none_of(model.begin(), model.end(),
                                [](const piece & p) { return gguf_find_tensor(p.gguf.get(), "output.weight") >= 0; });
    }

    int64_t bytes(const gguf_context * gguf, int64_t i) const {
        const char *  name  = gguf_get_tensor_name(gguf, i);
        const int64_t whole = (int64_t) gguf_get_tensor_size(gguf, i);
        if ((std::strcmp(name, "token_embd.weight") == 0 && !is_tied) || starts_with(name, "enc.")) {
            return 0;
        }
        return std::strstr(name, "_exps") && n_expert > 0 ? whole / n_expert * n_used : whole;
    }

private:
    int64_t n_expert = 0;
    int64_t n_used   = 0;
    bool    is_tied  = false;
};

bool read_tensors(const piece & part, const reading & read, pyskip_gguf_info & info, std::string & error) {
    const gguf_context * gguf = part.gguf.get();

    info.n_tensors += gguf_get_n_tensors(gguf);
    for (int64_t i = 0; i < gguf_get_n_tensors(gguf); ++i) {
        const ggml_type type = gguf_get_tensor_type(gguf, i);
        if (!pyskip_gguf_holds(gguf, i, part.size)) {
            return fail(error, part.path,
                        "is cut off: tensor " + std::string(gguf_get_tensor_name(gguf, i)) + " has " +
                            std::to_string(gguf_get_tensor_size(gguf, i)) + " bytes from byte " +
                            std::to_string(gguf_get_data_offset(gguf) + gguf_get_tensor_offset(gguf, i)) +
                            ", the file " + std::to_string(part.size) + ": download it again");
        }
        const int64_t bytes = (int64_t) gguf_get_tensor_size(gguf, i);
        info.bytes += bytes;
        info.read_bytes += read.bytes(gguf, i);
        info.n_params += bytes / (int64_t) ggml_type_size(type) * ggml_blck_size(type);
        if (ffn_layer(gguf_get_tensor_name(gguf, i)) >= 0) {
            info.ffn_bytes += bytes;
            info.read_ffn_bytes += read.bytes(gguf, i);
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
bool add_fingerprint(const piece & part, hasher & hash, std::string & error) {
    const gguf_context *  gguf = part.gguf.get();
    const pyskip_file_ptr file = pyskip_file_open(part.path.c_str());
    for (int64_t i = 0; i < gguf_get_n_tensors(gguf); ++i) {
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
        if (!pyskip_file_read(file.get(), (int64_t) offset, sample, n)) {
            return fail(error, part.path, "cannot be read at tensor " + std::string(name) + ": download it again");
        }
        hash.add(sample, n);
    }
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
        const int64_t n_head         = read_int(gguf, arch + "attention.head_count", il, 0);
        const int64_t n_head_kv      = std::min(MAX_SIZE, read_int(gguf, arch + "attention.head_count_kv", il, n_head));
        const int64_t n_head_default = n_head > 0 ? info.n_embd / n_head : 0;
        const int64_t n_k = std::min(MAX_SIZE, read_int(gguf, arch + "attention.key_length", 0, n_head_default));
        const int64_t n_v = std::min(MAX_SIZE, read_int(gguf, arch + "attention.value_length", 0, n_head_default));
        info.n_ff         = std::max(info.n_ff, read_int(gguf, arch + "feed_forward_length", il, 0));
        info.kv_bytes_per_token += n_head_kv * (n_k + n_v) * 2;
    }
}

bool open_piece(const std::string & path, pieces & model, std::string & error) {
    piece part;
    part.path = path;
    if (!pyskip_gguf_check(path.c_str(), "model", part.size, error)) {
        return false;
    }
    const gguf_init_params params = { /*.no_alloc =*/true, /*.ctx =*/nullptr };
    part.gguf.reset(gguf_init_from_file(path.c_str(), params));
    if (!part.gguf) {
        return fail(error, path,
                    "has a GGUF header that llama.cpp cannot read (cut off, damaged, or of a newer version): download "
                    "it again");
    }
    model.push_back(std::move(part));
    return true;
}

// The file, and the others if it is the first of several, which lie beside it as llama.cpp will look for them.
bool open_model(const char * path, pieces & model, std::string & error) {
    if (!open_piece(path, model, error)) {
        return false;
    }
    const gguf_context * first = model.front().gguf.get();
    const int64_t        id    = gguf_find_key(first, "split.count");
    const int64_t n_piece = id < 0 || gguf_get_kv_type(first, id) != GGUF_TYPE_UINT16 ? 1 : gguf_get_val_u16(first, id);
    if (n_piece <= 1) {
        return true;
    }
    std::vector<char> prefix(std::strlen(path) + 1);
    std::vector<char> other(prefix.size() + 32);
    if (llama_split_prefix(prefix.data(), prefix.size(), path, 0, (int32_t) n_piece) <= 0) {
        char name[64];
        std::snprintf(name, sizeof(name), "-00001-of-%05d.gguf", (int) n_piece);
        return fail(error, path,
                    "is a piece of a model, expected the first, with a name that ends in " + std::string(name));
    }
    for (int32_t i = 1; i < n_piece; ++i) {
        llama_split_path(other.data(), other.size(), prefix.data(), i, (int32_t) n_piece);
        if (!open_piece(other.data(), model, error)) {
            return false;
        }
    }
    return true;
}

} // namespace

bool pyskip_gguf_read_ffn(const char * path, int64_t * bytes, size_t n, std::string & error) {
    pieces model;
    if (!open_model(path, model, error)) {
        return false;
    }
    const reading read(model);
    std::fill(bytes, bytes + n, 0);
    for (const piece & part : model) {
        for (int64_t i = 0; i < gguf_get_n_tensors(part.gguf.get()); ++i) {
            const int64_t il = ffn_layer(gguf_get_tensor_name(part.gguf.get(), i));
            if (il < 0 || il >= (int64_t) n) {
                continue;
            }
            bytes[il] += read.bytes(part.gguf.get(), i);
        }
    }
    return true;
}

bool pyskip_gguf_read(const char * path, pyskip_gguf_info & info, std::string & error) {
    info = {};
    pieces model;
    if (!open_model(path, model, error)) {
        return false;
    }
    const gguf_context * first = model.front().gguf.get();
    read_text(first, "general.architecture", info.architecture, sizeof(info.architecture));
    read_text(first, "general.name", info.name, sizeof(info.name));
    info.has_chat_template = gguf_find_key(first, "tokenizer.chat_template") >= 0;
    read_shape(first, info);

    const reading read(model);
    hasher        hash;
    for (const piece & part : model) {
        if (!read_tensors(part, read, info, error) || !check_numbers(part, info.architecture, error) ||
            !add_fingerprint(part, hash, error)) {
            return false;
        }
    }
    std::string found;
    if (std::strcmp(info.architecture, "clip") == 0 && !pyskip_projector_check(first, found)) {
        return fail(error, path, found);
    }
    std::snprintf(info.fingerprint, sizeof(info.fingerprint), "fnv1a64:%016llx", (unsigned long long) hash.value);
    return true;
}

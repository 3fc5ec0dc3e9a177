#include "gguf-projector.h"

#include "ggml.h"

#include <cmath>
#include <cstdlib>
#include <map>
#include <set>

namespace {

constexpr int64_t MAX_DIVISOR = 1 << 20;

// Tensors that an encoder's graph adds or multiplies in every layer, if it does in any.
const std::set<std::string> IN_EVERY_LAYER = { "attn_q", "attn_k",   "attn_v",   "attn_qkv", "attn_out", "ln1",
                                               "ln2",    "ffn_down", "ffn_gate", "ffn_up",   "ls1",      "ls2" };

// Kinds of encoders, by prefix, whose graph takes positions from the file without asking whether they are there; and those
// that do so with the class's embedding.
const std::map<std::string, std::set<std::string>> WITH_POSITIONS = {
    { "v",
      { "mlp",       "ldp",         "ldpv2",       "adapter",   "resampler",      "minicpmv4_6",     "qwen3vl_merger",
        "ling3vl",   "step3vl",     "phi4",        "lfm2",      "gemma4v",        "gemma4uv",        "internvl",
        "llama4",    "kimivl",      "kimik25",     "paddleocr", "nemotron_v2_vl", "granite4_vision", "cogvlm",
        "hunyuanvl", "deepseekocr", "muse-glimmer" } },
    { "a", { "ultravox", "voxtral", "meralion", "musicflamingo", "glma", "qwen2a", "qwen2.5o", "qwen3a", "lfm2a" } },
};
const std::set<std::string> WITH_CLASS = { "internvl", "llama4", "nemotron_v2_vl", "cogvlm", "deepseekocr" };

// Sizes that something is divided by.
const std::set<std::string> DIVISORS = { "attention.head_count",
                                         "embedding_length",
                                         "patch_size",
                                         "image_size",
                                         "spatial_merge_size",
                                         "projector.scale_factor",
                                         "projector.stack_factor",
                                         "projector.query_length",
                                         "num_mel_bins" };

bool fail(std::string & found, const std::string & line) {
    found = line + ": the file is damaged, download it again";
    return false;
}

// Behind "clip.vision." or "clip.audio."
std::string key_of(const std::string & name) {
    for (const char * prefix : { "clip.vision.", "clip.audio." }) {
        if (name.rfind(prefix, 0) == 0) {
            return name.substr(std::string(prefix).size());
        }
    }
    return "";
}

bool check_keys(const gguf_context * gguf, std::string & found) {
    for (int64_t id = 0; id < gguf_get_n_kv(gguf); ++id) {
        const std::string name = gguf_get_key(gguf, id);
        const std::string key  = key_of(name);
        if (DIVISORS.count(key) > 0) {
            const bool    is_size = gguf_get_kv_type(gguf, id) == GGUF_TYPE_UINT32;
            const int64_t value   = is_size ? gguf_get_val_u32(gguf, id) : -1;
            if (value < 1 || value > MAX_DIVISOR) {
                return fail(found, name + " is " + (is_size ? std::to_string(value) : "no size") +
                                       ", expected a number from 1 to " + std::to_string(MAX_DIVISOR));
            }
        }
        if (key == "attention.layer_norm_epsilon") {
            const bool  is_float = gguf_get_kv_type(gguf, id) == GGUF_TYPE_FLOAT32;
            const float value    = is_float ? gguf_get_val_f32(gguf, id) : -1.0f;
            if (!(value >= 0.0f && std::isfinite(value))) {
                return fail(found, name + " is " + (is_float ? std::to_string(value) : "no number") +
                                       ", expected a number from 0");
            }
        }
    }
    return true;
}

// What a key says; "" if there is none, or another type.
std::string text_of(const gguf_context * gguf, const std::string & key) {
    const int64_t id = gguf_find_key(gguf, key.c_str());
    return id >= 0 && gguf_get_kv_type(gguf, id) == GGUF_TYPE_STRING ? gguf_get_val_str(gguf, id) : "";
}

bool check_kinds(const gguf_context * gguf, std::string & found) {
    const auto lacks = [&](const std::string & kind, const std::string & tensor) {
        if (gguf_find_tensor(gguf, tensor.c_str()) >= 0) {
            return false;
        }
        return !fail(found, "a projector of kind " + kind + " without " + tensor + ", which its encoder reads");
    };
    for (const auto & [prefix, kinds] : WITH_POSITIONS) {
        std::string kind = text_of(gguf, "clip.projector_type");
        if (kind.empty()) {
            kind = text_of(gguf, prefix == "v" ? "clip.vision.projector_type" : "clip.audio.projector_type");
        }
        if ((kinds.count(kind) > 0 && lacks(kind, prefix + ".position_embd.weight")) ||
            (prefix == "v" && WITH_CLASS.count(kind) > 0 && lacks(kind, "v.class_embd"))) {
            return false;
        }
    }
    return true;
}

// A bias is added to what its weight makes.
bool check_pairs(const gguf_context * gguf, std::string & found) {
    const std::string bias = ".bias";
    for (int64_t i = 0; i < gguf_get_n_tensors(gguf); ++i) {
        const std::string name = gguf_get_tensor_name(gguf, i);
        if (name.size() <= bias.size() || name.compare(name.size() - bias.size(), bias.size(), bias) != 0) {
            continue;
        }
        const std::string weight = name.substr(0, name.size() - bias.size()) + ".weight";
        if (gguf_find_tensor(gguf, weight.c_str()) < 0) {
            return fail(found, "there is a " + name.substr(0, 60) + " and no weight, expected both");
        }
    }
    return true;
}

bool check_types(const gguf_context * gguf, std::string & found) {
    for (int64_t i = 0; i < gguf_get_n_tensors(gguf); ++i) {
        const std::string name = gguf_get_tensor_name(gguf, i);
        const ggml_type   type = gguf_get_tensor_type(gguf, i);
        if (name.find("position_id") == std::string::npos && type != GGML_TYPE_F32 &&
            !ggml_get_type_traits(type)->to_float) {
            return fail(found, "tensor " + name.substr(0, 60) + " is " + ggml_type_name(type) +
                                   ", expected floats or a quantised type");
        }
    }
    return true;
}

// A graph asks for no tensor whether it is there: what most layers have all must have.
bool check_layers(const gguf_context * gguf, std::string & found) {
    std::map<std::string, std::set<int64_t>> have;   // by encoder and part, "v.blk.*.attn_q.weight"
    std::map<std::string, std::set<int64_t>> layers; // by encoder
    for (int64_t i = 0; i < gguf_get_n_tensors(gguf); ++i) {
        const std::string name  = gguf_get_tensor_name(gguf, i);
        const size_t      blk   = name.find(".blk.");
        const size_t      point = blk == std::string::npos ? blk : name.find('.', blk + 5);
        if (point == std::string::npos || blk > 2) {
            continue;
        }
        const std::string encoder = name.substr(0, blk);
        const std::string part    = name.substr(point + 1);
        if (IN_EVERY_LAYER.count(part.substr(0, part.find('.'))) > 0) {
            const int64_t il = std::atoll(name.c_str() + blk + 5);
            have[encoder + ".blk.*." + part].insert(il);
            layers[encoder].insert(il);
        }
    }
    if (layers.count("v") > 0 && gguf_find_tensor(gguf, "v.patch_embd.weight") < 0) {
        return fail(found, "there are layers of an encoder of images and no v.patch_embd.weight, expected both");
    }
    for (const auto & [part, in] : have) {
        const std::set<int64_t> & all = layers[part.substr(0, part.find('.'))];
        if (in.size() < all.size() && 2 * in.size() > all.size()) {
            return fail(found, part.substr(0, 60) + " is in " + std::to_string(in.size()) + " layers, expected all " +
                                   std::to_string(all.size()));
        }
    }
    return true;
}

} // namespace

bool pyskip_projector_check(const gguf_context * gguf, std::string & found) {
    return check_keys(gguf, found) && check_types(gguf, found) && check_layers(gguf, found) &&
           check_pairs(gguf, found) && check_kinds(gguf, found);
}

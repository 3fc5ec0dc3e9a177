#include "profile.h"

#include "ggml-backend.h"
#include "ggml.h"
#include "gguf-file.h"
#include "gguf.h"
#include "profile-fields.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace {

constexpr int64_t MAX_LAYER = 4096;
constexpr int64_t MAX_EMBD  = 1 << 17;
constexpr int64_t MAX_POINT = 1024;

constexpr char ATTENTION_CURVE[] = "pyskip.attention.curve.";

class reader : pyskip_profile_fields {
public:
    reader(const char * path, pyskip_profile & profile, std::string & error)
        : pyskip_profile_fields(path, error), profile(profile) {}

    bool read() {
        ggml_context *         meta   = nullptr;
        const gguf_init_params params = { /*.no_alloc =*/true, /*.ctx =*/&meta };
        if (!pyskip_gguf_check(path, "profile", size, error)) {
            return false;
        }
        gguf.reset(gguf_init_from_file(path, params));
        profile.tensors.reset(meta);
        if (!gguf || !meta) {
            return fail("GGUF header", "one that cannot be read (cut off, damaged, or of a newer version)",
                        "a whole profile");
        }
        return read_info() && read_curves() && read_static() && check_tensors() && bind_all() && load();
    }

private:
    // Metadata

    bool read_info() {
        pyskip_profile_info & info = profile.info;
        char                  kind[32];
        int64_t               n_layer, n_embd, warmup, n_tokens;
        if (!text("general.architecture", kind, sizeof(kind), true)) {
            return false;
        }
        if (std::strcmp(kind, "pyskip") != 0) {
            return fail("general.architecture", kind, "pyskip (a profile, not a model)");
        }
        int64_t version;
        if (!number("pyskip.profile_version", 1, PYSKIP_PROFILE_VERSION, version) ||
            !number("pyskip.block_count", 1, MAX_LAYER, n_layer) ||
            !number("pyskip.embedding_length", 1, MAX_EMBD, n_embd) || !number("pyskip.warmup", 0, INT32_MAX, warmup) ||
            !number("pyskip.calibration.n_tokens", 0, UINT32_MAX, n_tokens) ||
            !text("pyskip.model_fingerprint", info.fingerprint, sizeof(info.fingerprint), true) ||
            !text("pyskip.model_name", info.model, sizeof(info.model), false) ||
            !text("pyskip.stand_in", info.stand_in, sizeof(info.stand_in), true) ||
            !text("pyskip.calibration.method", info.method, sizeof(info.method), false) ||
            !text("pyskip.calibration.text", info.text, sizeof(info.text), false) ||
            !text("pyskip.calibration.text_sha256", info.text_sha256, sizeof(info.text_sha256), false) ||
            !text("pyskip.calibration.version", info.made_by, sizeof(info.made_by), false)) {
            return false;
        }
        is_gated  = std::strcmp(info.stand_in, "gated") == 0;
        is_linear = std::strcmp(info.stand_in, "linear") == 0;
        if (!is_gated && !is_linear && std::strcmp(info.stand_in, "none") != 0) {
            return fail("pyskip.stand_in", info.stand_in, "linear, gated or none");
        }
        if (is_gated && version >= 2 && !read_activation()) {
            return false;
        }
        has_attention = version >= 3 && gguf_find_key(gguf.get(), (ATTENTION_CURVE + std::string("rate")).c_str()) >= 0;
        info.n_layer  = (int32_t) n_layer;
        info.n_embd   = (int32_t) n_embd;
        info.warmup   = (int32_t) warmup;
        info.n_tokens = n_tokens;
        return true;
    }

    bool read_activation() {
        char    name[8];
        int64_t is_one;
        if (!text("pyskip.activation", name, sizeof(name), true) || !number("pyskip.hidden_norm", 0, 1, is_one)) {
            return false;
        }
        is_normed = is_one == 1;
        for (const auto & [known, value] :
             { std::pair("silu", PYSKIP_ACTIVATION_SILU), std::pair("gelu", PYSKIP_ACTIVATION_GELU),
               std::pair("relu", PYSKIP_ACTIVATION_RELU) }) {
            if (std::strcmp(name, known) == 0) {
                activation = value;
                return true;
            }
        }
        return fail("pyskip.activation", name, "silu, gelu or relu");
    }

    bool read_curve(const std::string & prefix, std::vector<pyskip_profile_point> & curve) {
        using point = pyskip_profile_point;
        if (!points(prefix + "rate", MAX_POINT, curve, 0.0f, 1.0f, &point::rate) ||
            !points(prefix + "threshold", MAX_POINT, curve, -1e6f, 1e6f, &point::threshold) ||
            !points(prefix + "ppl_ratio", MAX_POINT, curve, 0.0f, 1e9f, &point::ppl_ratio) ||
            !points(prefix + "ppl_ratio_se", MAX_POINT, curve, 0.0f, 1e9f, &point::ppl_ratio_se) ||
            !points(prefix + "kld_mean", MAX_POINT, curve, -1.0f, 1e9f, &point::kld_mean) ||
            !points(prefix + "ffn_bytes_saved", MAX_POINT, curve, -1e3f, 1.0f, &point::ffn_bytes_saved) ||
            !points(prefix + "ideal_speedup", MAX_POINT, curve, 0.0f, 1e3f, &point::ideal_speedup)) {
            return false;
        }
        for (size_t i = 1; i < curve.size(); ++i) {
            if (curve[i].rate <= curve[i - 1].rate) {
                return fail(prefix + "rate", "a rate that is no higher than the one before", "rising rates");
            }
            if (curve[i].threshold < curve[i - 1].threshold) {
                return fail(prefix + "threshold", "a threshold below the one before", "rising thresholds");
            }
        }
        return true;
    }

    bool read_curves() {
        std::vector<pyskip_profile_point> & curve     = profile.curves[PYSKIP_SUBLAYER_FFN];
        std::vector<pyskip_profile_point> & attention = profile.curves[PYSKIP_SUBLAYER_ATTENTION];
        int64_t                             recommended;
        if (!read_curve("pyskip.curve.", curve) ||
            !number("pyskip.recommended", 0, (int64_t) curve.size() - 1, recommended) ||
            (has_attention && !read_curve(ATTENTION_CURVE, attention))) {
            return false;
        }
        profile.info.n_points           = (int32_t) curve.size();
        profile.info.recommended        = (int32_t) recommended;
        profile.info.n_attention_points = (int32_t) attention.size();
        return true;
    }

    // Places as pyskip_place() has them, each once, and what the sets that end with each cost.
    bool read_static_steps(const std::string & key, std::vector<pyskip_static_step> & steps) {
        const size_t n_place = 2 * (size_t) profile.info.n_layer;
        size_t       n       = 0;
        const void * values  = nullptr;
        if (gguf_find_key(gguf.get(), key.c_str()) < 0) {
            return true;
        }
        if (!array(key, GGUF_TYPE_UINT32, "uint32", n_place, n, values)) {
            return false;
        }
        steps.resize(n);
        const uint32_t *  places = (const uint32_t *) values;
        std::vector<bool> named(n_place);
        for (size_t i = 0; i < steps.size(); ++i) {
            if (places[i] >= n_place || named[places[i]]) {
                return fail(key, std::to_string(places[i]) + (places[i] < n_place ? " twice" : ""),
                            "each of 0 to " + std::to_string(n_place - 1) + " at most once");
            }
            named[places[i]]  = true;
            steps[i].il       = (int32_t) (places[i] / 2);
            steps[i].sublayer = places[i] % 2 == 1 ? PYSKIP_SUBLAYER_FFN : PYSKIP_SUBLAYER_ATTENTION;
        }
        return points(key + ".kld_mean", n_place, steps, -1.0f, 1e9f, &pyskip_static_step::kld_mean) &&
               points(key + ".ppl_ratio", n_place, steps, 0.0f, 1e9f, &pyskip_static_step::ppl_ratio);
    }

    bool read_static() {
        return read_static_steps("pyskip.static.loss", profile.static_steps[PYSKIP_STATIC_BY_LOSS]) &&
               read_static_steps("pyskip.static.cosine", profile.static_steps[PYSKIP_STATIC_BY_COSINE]) &&
               read_static_steps("pyskip.static.norm", profile.static_steps[PYSKIP_STATIC_BY_NORM]);
    }

    // Tensors

    bool check_tensors() {
        const int64_t n = gguf_get_n_tensors(gguf.get());
        for (int64_t i = 0; i < n; ++i) {
            if (!pyskip_gguf_holds(gguf.get(), i, size)) {
                return fail("tensor " + std::string(gguf_get_tensor_name(gguf.get(), i)),
                            "a file of " + std::to_string(size) + " bytes, which ends before it", "a whole one");
            }
        }
        return true;
    }

    static std::string shape(const ggml_tensor * t) {
        return std::string(ggml_type_name(t->type)) + " [" + std::to_string(t->ne[0]) + ", " +
               std::to_string(t->ne[1]) + ", " + std::to_string(t->ne[2]) + ", " + std::to_string(t->ne[3]) + "]";
    }

    // "blk.5.skip_up.weight", "blk.5.attn_skip_up.weight"
    static std::string name_of(pyskip_sublayer sublayer, int32_t il, const char * suffix) {
        return "blk." + std::to_string(il) + (sublayer == PYSKIP_SUBLAYER_ATTENTION ? ".attn_" : ".") + suffix;
    }

    ggml_tensor * find(pyskip_sublayer sublayer, int32_t il, const char * suffix) {
        return ggml_get_tensor(profile.tensors.get(), name_of(sublayer, il, suffix).c_str());
    }

    bool vector(pyskip_sublayer sublayer, int32_t il, const char * suffix, int64_t n, ggml_tensor *& out) {
        out = find(sublayer, il, suffix);
        if (out && (out->type != GGML_TYPE_F32 || out->ne[0] != n || ggml_nrows(out) != 1)) {
            return fail("tensor " + std::string(out->name), shape(out), "f32 [" + std::to_string(n) + "]");
        }
        return true;
    }

    static bool is_weight_type(ggml_type type) {
        switch (type) {
            case GGML_TYPE_F32:
            case GGML_TYPE_F16:
            case GGML_TYPE_Q8_0:
            case GGML_TYPE_Q4_0:
            case GGML_TYPE_Q4_1:
            case GGML_TYPE_Q4_K:
            case GGML_TYPE_Q3_K:
            case GGML_TYPE_Q2_K: return true;
            default: return false;
        }
    }

    bool matrix(const ggml_tensor * t, int64_t n_in, int64_t n_out) {
        if (!is_weight_type(t->type) || t->ne[0] != n_in || t->ne[1] != n_out || t->ne[2] != 1 || t->ne[3] != 1) {
            return fail("tensor " + std::string(t->name), shape(t),
                        "f32, f16, q8_0, q4_0, q4_1, q4_K, q3_K or q2_K [" + std::to_string(n_in) + ", " +
                            std::to_string(n_out) + "]");
        }
        return true;
    }

    bool bind_linear(pyskip_sublayer sublayer, int32_t il, pyskip_stand_in & own) {
        const int64_t n_embd = profile.info.n_embd;
        own.up               = find(sublayer, il, "skip_up.weight");
        own.down             = find(sublayer, il, "skip_down.weight");
        if (!own.up) {
            return fail("tensor " + name_of(sublayer, il, "skip_up.weight"), "none", "one, beside the gate");
        }
        own.rank = own.down ? own.down->ne[1] : n_embd;
        if (own.rank < 1 || own.rank > n_embd) {
            return fail("tensor " + std::string(own.down->name), "rank " + std::to_string(own.rank),
                        "1 to " + std::to_string(n_embd));
        }
        return matrix(own.up, own.rank, n_embd) && (!own.down || matrix(own.down, n_embd, own.rank));
    }

    bool bind_gated(int32_t il, pyskip_stand_in & own) {
        const int64_t n_embd = profile.info.n_embd;
        own.gate_up          = find(PYSKIP_SUBLAYER_FFN, il, "skip_gate_up.weight");
        own.down             = find(PYSKIP_SUBLAYER_FFN, il, "skip_down.weight");
        if (!own.gate_up || !own.down) {
            return fail("tensor blk." + std::to_string(il) + ".skip_gate_up.weight or .skip_down.weight", "none",
                        "both, beside the gate");
        }
        own.activation = activation;
        own.is_normed  = is_normed;
        own.rank       = own.down->ne[0];
        if (own.rank < 1 || own.rank > 4 * n_embd) {
            return fail("tensor " + std::string(own.down->name), "width " + std::to_string(own.rank),
                        "1 to 4 x n_embd");
        }
        return matrix(own.gate_up, n_embd, 2 * own.rank) && matrix(own.down, own.rank, n_embd);
    }

    // The gates and stand-ins of the first n_layer layers.
    bool bind_layers(pyskip_sublayer sublayer, int32_t n_layer, int32_t & rank) {
        const int64_t                  n_embd = profile.info.n_embd;
        std::vector<pyskip_stand_in> & layers = profile.stand_ins[sublayer];
        std::vector<ggml_tensor *> &   gates  = all_gates[sublayer];
        std::vector<ggml_tensor *> &   biases = all_biases[sublayer];

        int64_t n_found = 0;
        layers.resize(n_layer);
        gates.assign(n_layer, nullptr);
        biases.assign(n_layer, nullptr);
        for (int32_t il = 0; il < n_layer; ++il) {
            pyskip_stand_in & own = layers[il];
            if (!vector(sublayer, il, "skip_gate.weight", n_embd + 2, gates[il])) {
                return false;
            }
            if (!gates[il]) {
                continue;
            }
            if (!vector(sublayer, il, "skip.bias", n_embd, biases[il])) {
                return false;
            }
            if (!biases[il]) {
                return fail("tensor " + name_of(sublayer, il, "skip.bias"), "none", "one, beside the gate");
            }
            if (sublayer == PYSKIP_SUBLAYER_ATTENTION || is_linear ? !bind_linear(sublayer, il, own)
                                                                   : is_gated && !bind_gated(il, own)) {
                return false;
            }
            n_bound += 2;
            own.bytes = (int64_t) ggml_nbytes(biases[il]);
            for (const ggml_tensor * t : { own.down, own.up, own.gate_up }) {
                n_bound += t != nullptr;
                own.bytes += t ? (int64_t) ggml_nbytes(t) : 0;
            }
            n_found++;
            rank = std::max(rank, (int32_t) own.rank);
        }
        if (n_found == 0) {
            const char * name = sublayer == PYSKIP_SUBLAYER_ATTENTION ? "attn_skip_gate" : "skip_gate";
            return fail("tensor blk.N." + std::string(name) + ".weight", "none", "one in at least one layer");
        }
        return true;
    }

    bool bind_all() {
        pyskip_profile_info & info = profile.info;

        profile.gate_bytes = (info.n_embd + 2) * (int64_t) sizeof(float);
        if (!bind_layers(PYSKIP_SUBLAYER_FFN, info.n_layer, info.rank)) {
            return false;
        }
        // attention of the last layer, of which llama.cpp passes on some tokens only, always runs
        if (has_attention && !bind_layers(PYSKIP_SUBLAYER_ATTENTION, info.n_layer - 1, info.attention_rank)) {
            return false;
        }
        if (n_bound != gguf_get_n_tensors(gguf.get())) {
            return fail("tensors", std::to_string(gguf_get_n_tensors(gguf.get())),
                        std::to_string(n_bound) + " that a " + std::string(info.stand_in) + " profile of " +
                            std::to_string(info.n_layer) + " layers can use");
        }
        return true;
    }

    // Reads the weights, checks each and hands it to where it lies: in packed buffers they are not as in the file.
    bool load() {
        pyskip_profile_alloc(profile);
        const pyskip_file_ptr file = pyskip_file_open(path);
        std::vector<char>     data;
        for (int64_t i = 0; i < gguf_get_n_tensors(gguf.get()); ++i) {
            ggml_tensor * t      = ggml_get_tensor(profile.tensors.get(), gguf_get_tensor_name(gguf.get(), i));
            const size_t  offset = gguf_get_data_offset(gguf.get()) + gguf_get_tensor_offset(gguf.get(), i);
            data.resize(ggml_nbytes(t));
            if (!pyskip_file_read(file.get(), (int64_t) offset, data.data(), data.size())) {
                return fail("tensor " + std::string(t->name), "data that cannot be read",
                            std::to_string(data.size()) + " bytes");
            }
            const int64_t bad_row = pyskip_profile_row_not_finite(t, data.data());
            if (bad_row >= 0) {
                return fail("tensor " + std::string(t->name),
                            "a value that is not finite in row " + std::to_string(bad_row), "finite values");
            }
            ggml_backend_tensor_set(t, data.data(), 0, data.size());
        }
        for (const pyskip_sublayer sublayer : { PYSKIP_SUBLAYER_FFN, PYSKIP_SUBLAYER_ATTENTION }) {
            for (size_t il = 0; il < profile.stand_ins[sublayer].size(); ++il) {
                const ggml_tensor * gate = all_gates[sublayer][il];
                const ggml_tensor * bias = all_biases[sublayer][il];

                profile.stand_ins[sublayer][il].gate = gate ? (const float *) gate->data : nullptr;
                profile.stand_ins[sublayer][il].bias = bias ? (const float *) bias->data : nullptr;
            }
        }
        return true;
    }

    pyskip_profile & profile;

    int64_t size          = 0;
    bool    is_gated      = false;
    bool    is_linear     = false;
    bool    is_normed     = false;
    bool    has_attention = false;
    int64_t n_bound       = 0; // tensors

    pyskip_activation activation = PYSKIP_ACTIVATION_SILU;

    std::array<std::vector<ggml_tensor *>, 2> all_gates; // [sublayer][il]
    std::array<std::vector<ggml_tensor *>, 2> all_biases;
};

} // namespace

bool pyskip_profile_read(const char * path, pyskip_profile & profile, std::string & error) {
    return reader(path, profile, error).read();
}

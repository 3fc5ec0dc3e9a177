#include "profile.h"

#include "ggml-backend.h"
#include "ggml.h"
#include "gguf-file.h"
#include "gguf.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

namespace {

constexpr int64_t MAX_LAYER = 4096;
constexpr int64_t MAX_EMBD  = 1 << 17;
constexpr int64_t MAX_POINT = 1024;

class reader {
public:
    reader(const char * path, pyskip_profile & profile, std::string & error)
        : path(path), profile(profile), error(error) {}

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
        return read_info() && read_curve() && check_tensors() && bind_layers() && load();
    }

private:
    bool fail(const std::string & field, const std::string & found, const std::string & expected) {
        error = std::string(path) + ": " + field + ": found " + found + ", expected " + expected +
                ": make the profile again with pyskip calibrate";
        return false;
    }

    // Metadata

    bool text(const char * key, char * out, size_t n_out, bool is_needed) {
        const int64_t id = gguf_find_key(gguf.get(), key);
        if (id < 0) {
            return !is_needed || fail(key, "none", "a text");
        }
        if (gguf_get_kv_type(gguf.get(), id) != GGUF_TYPE_STRING) {
            return fail(key, "another type", "a text");
        }
        std::snprintf(out, n_out, "%s", gguf_get_val_str(gguf.get(), id));
        return true;
    }

    bool number(const char * key, int64_t low, int64_t high, int64_t & out) {
        const int64_t id = gguf_find_key(gguf.get(), key);
        if (id < 0 || gguf_get_kv_type(gguf.get(), id) != GGUF_TYPE_UINT32) {
            return fail(key, id < 0 ? "none" : "another type", "a uint32");
        }
        out = gguf_get_val_u32(gguf.get(), id);
        if (out < low || out > high) {
            return fail(key, std::to_string(out), std::to_string(low) + " to " + std::to_string(high));
        }
        return true;
    }

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

    // A float32 array of as many values as the curve has points.
    bool points(const char * name, float low, float high, float pyskip_profile_point::* member) {
        const std::string key = std::string("pyskip.curve.") + name;
        const int64_t     id  = gguf_find_key(gguf.get(), key.c_str());
        if (id < 0 || gguf_get_kv_type(gguf.get(), id) != GGUF_TYPE_ARRAY ||
            gguf_get_arr_type(gguf.get(), id) != GGUF_TYPE_FLOAT32) {
            return fail(key, id < 0 ? "none" : "another type", "a float32 array");
        }
        const size_t n = gguf_get_arr_n(gguf.get(), id);
        if (profile.curve.empty() && n > 0 && n <= MAX_POINT) {
            profile.curve.resize(n);
        }
        if (n == 0 || n != profile.curve.size()) {
            return fail(key, std::to_string(n) + " values", std::to_string(profile.curve.size()) + " (1 to 1024)");
        }
        const float * data = (const float *) gguf_get_arr_data(gguf.get(), id);
        for (size_t i = 0; i < n; ++i) {
            if (!(data[i] >= low && data[i] <= high)) {
                return fail(key, std::to_string(data[i]), std::to_string(low) + " to " + std::to_string(high));
            }
            profile.curve[i].*member = data[i];
        }
        return true;
    }

    bool read_curve() {
        using point = pyskip_profile_point;
        if (!points("rate", 0.0f, 1.0f, &point::rate) || !points("threshold", -1e6f, 1e6f, &point::threshold) ||
            !points("ppl_ratio", 0.0f, 1e9f, &point::ppl_ratio) ||
            !points("ppl_ratio_se", 0.0f, 1e9f, &point::ppl_ratio_se) ||
            !points("kld_mean", -1.0f, 1e9f, &point::kld_mean) ||
            !points("ffn_bytes_saved", -1e3f, 1.0f, &point::ffn_bytes_saved) ||
            !points("ideal_speedup", 0.0f, 1e3f, &point::ideal_speedup)) {
            return false;
        }
        for (size_t i = 1; i < profile.curve.size(); ++i) {
            if (profile.curve[i].rate <= profile.curve[i - 1].rate) {
                return fail("pyskip.curve.rate", "a rate that is no higher than the one before", "rising rates");
            }
            if (profile.curve[i].threshold < profile.curve[i - 1].threshold) {
                return fail("pyskip.curve.threshold", "a threshold below the one before", "rising thresholds");
            }
        }
        int64_t recommended;
        if (!number("pyskip.recommended", 0, (int64_t) profile.curve.size() - 1, recommended)) {
            return false;
        }
        profile.info.n_points    = (int32_t) profile.curve.size();
        profile.info.recommended = (int32_t) recommended;
        return true;
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

    ggml_tensor * find(int32_t il, const char * suffix) {
        return ggml_get_tensor(profile.tensors.get(), ("blk." + std::to_string(il) + "." + suffix).c_str());
    }

    bool vector(int32_t il, const char * suffix, int64_t n, ggml_tensor *& out) {
        out = find(il, suffix);
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

    bool bind_linear(int32_t il, pyskip_stand_in & own) {
        const int64_t n_embd = profile.info.n_embd;
        own.up               = find(il, "skip_up.weight");
        own.down             = find(il, "skip_down.weight");
        if (!own.up) {
            return fail("tensor blk." + std::to_string(il) + ".skip_up.weight", "none", "one, beside the gate");
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
        own.gate_up          = find(il, "skip_gate_up.weight");
        own.down             = find(il, "skip_down.weight");
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

    bool bind_layers() {
        const pyskip_profile_info & info = profile.info;

        int64_t n_bound    = 0;
        int64_t n_layers   = 0;
        profile.gate_bytes = (info.n_embd + 2) * (int64_t) sizeof(float);
        profile.layers.resize(info.n_layer);
        gates.assign(info.n_layer, nullptr);
        biases.assign(info.n_layer, nullptr);
        for (int32_t il = 0; il < info.n_layer; ++il) {
            pyskip_stand_in & own = profile.layers[il];
            if (!vector(il, "skip_gate.weight", info.n_embd + 2, gates[il])) {
                return false;
            }
            if (!gates[il]) {
                continue;
            }
            if (!vector(il, "skip.bias", info.n_embd, biases[il])) {
                return false;
            }
            if (!biases[il]) {
                return fail("tensor blk." + std::to_string(il) + ".skip.bias", "none", "one, beside the gate");
            }
            if ((is_linear && !bind_linear(il, own)) || (is_gated && !bind_gated(il, own))) {
                return false;
            }
            n_bound += 2;
            own.bytes = (int64_t) ggml_nbytes(biases[il]);
            for (const ggml_tensor * t : { own.down, own.up, own.gate_up }) {
                n_bound += t != nullptr;
                own.bytes += t ? (int64_t) ggml_nbytes(t) : 0;
            }
            n_layers++;
            profile.info.rank = std::max(profile.info.rank, (int32_t) own.rank);
        }
        if (n_layers == 0) {
            return fail("tensor blk.N.skip_gate.weight", "none", "one in at least one layer");
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
        for (int32_t il = 0; il < profile.info.n_layer; ++il) {
            profile.layers[il].gate = gates[il] ? (const float *) gates[il]->data : nullptr;
            profile.layers[il].bias = biases[il] ? (const float *) biases[il]->data : nullptr;
        }
        return true;
    }

    const char *     path;
    pyskip_profile & profile;
    std::string &    error;

    int64_t         size = 0;
    pyskip_gguf_ptr gguf;
    bool            is_gated  = false;
    bool            is_linear = false;
    bool            is_normed = false;

    pyskip_activation activation = PYSKIP_ACTIVATION_SILU;

    std::vector<ggml_tensor *> gates;
    std::vector<ggml_tensor *> biases;
};

} // namespace

bool pyskip_profile_read(const char * path, pyskip_profile & profile, std::string & error) {
    return reader(path, profile, error).read();
}

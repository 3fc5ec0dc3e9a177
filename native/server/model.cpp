#include "model.h"

#include "llama.h"
#include "policy.h"
#include "settings.h"
#include "static-set.h"
#include "system.h"
#include "turn-pace.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

namespace fs = std::filesystem;

static constexpr size_t N_ERROR   = 4096 + 512;
static constexpr size_t MAX_TRACE = 65536; // tokens between two looks of a slot at what it decoded

pyskip_served_model & pyskip_server_model() {
    static pyskip_served_model model;
    return model;
}

// Paths are UTF-8, whatever the code page of a Windows is.
static fs::path path_beside(const std::string & model_path) {
    const fs::path model = fs::u8path(model_path);
    fs::path       name  = model.extension() == ".gguf" ? model.stem() : model.filename();
    return model.parent_path() / (name += ".skip.gguf");
}

// Of every model that comes with pyskip: beside the folder of this program.
static std::vector<fs::path> bundled() {
    std::vector<fs::path> found;
    std::error_code       ignored;
    const fs::path        self = pyskip_program_path();
    for (const auto & entry : fs::directory_iterator(self.parent_path().parent_path() / "profiles", ignored)) {
        if (entry.path().extension() == ".gguf") {
            found.push_back(entry.path());
        }
    }
    std::sort(found.begin(), found.end());
    return found;
}

// True if it is the model's. False without an error: it is another's, and nobody asked for it.
bool pyskip_served_model::read_profile(const std::string & path, const std::string & fingerprint, bool is_asked_for,
                                       std::string & error) {
    char             line[N_ERROR];
    pyskip_profile * read = nullptr;
    if (pyskip_profile_load(path.c_str(), &read, line, sizeof(line)) != PYSKIP_STATUS_OK) {
        error = line;
        return false;
    }
    pyskip_profile_get(read, &info);
    if (info.fingerprint != fingerprint) {
        if (is_asked_for) {
            error = path + ": pyskip.model_fingerprint: found " + info.fingerprint + ", expected " + fingerprint +
                    " of " + model_path + ": a profile serves the one file that it was made for; run pyskip calibrate";
        }
        pyskip_profile_free(read);
        return false;
    }
    profile = read;
    points.resize(info.n_points);
    attention_points.resize(info.n_attention_points);
    pyskip_profile_get_points(profile, PYSKIP_SUBLAYER_FFN, points.data());
    pyskip_profile_get_points(profile, PYSKIP_SUBLAYER_ATTENTION, attention_points.data());
    return true;
}

bool pyskip_served_model::find_profile(const std::string & path, std::string & error) {
    char             line[N_ERROR];
    pyskip_gguf_info model{};
    if (pyskip_gguf_inspect(path.c_str(), &model, line, sizeof(line)) != PYSKIP_STATUS_OK) {
        error = line;
        return false;
    }
    const std::string & asked_for = pyskip_server_settings().profile;
    const fs::path      beside    = path_beside(path);
    if (!asked_for.empty()) {
        return read_profile(asked_for, model.fingerprint, true, error);
    }
    if (fs::exists(beside)) {
        return read_profile(beside.u8string(), model.fingerprint, true, error);
    }
    for (const fs::path & other : bundled()) {
        if (read_profile(other.u8string(), model.fingerprint, false, error) || !error.empty()) {
            break;
        }
    }
    return error.empty();
}

// What the command line asks for. Throws pyskip_bad_spec if the model lacks that.
void pyskip_served_model::read_settings() {
    const pyskip_settings & settings = pyskip_server_settings();
    own = own_floor = {};
    own_pace        = { settings.target_tps, settings.max_skip };
    if (!settings.skip.empty()) {
        own = own_floor = pyskip_spec_parse(settings.skip);
    } else if (profile) {
        own.type = PYSKIP_POLICY_PROFILE;
    }
    if (settings.skip_prompt >= 0.0 && (profile || !settings.skip.empty())) {
        own       = own.with_prompt(settings.skip_prompt);
        own_floor = own_floor.with_prompt(settings.skip_prompt);
    }
    if (own_pace.target_tps > 0.0) {
        own = own_floor.paced();
        check_pace(own, own_pace);
    } else if (own_pace.max_skip >= 0.0) {
        throw pyskip_bad_spec("--max-skip is " + pyskip_number(own_pace.max_skip) +
                              " and there is no --target-tps to keep: give one");
    }
    check(own);
}

bool pyskip_served_model::load(const std::string & path, const std::string & name, llama_context * ctx, int32_t n_ctx,
                               std::string & error) {
    const bool is_first = model_path.empty();
    model_path          = path;
    model_name          = name;
    if (is_first && !find_profile(path, error)) {
        return false;
    }
    if (!pyskip_server_settings().lossless.empty() && !llama_get_memory(ctx)) {
        error =
            path + ": --lossless found a model that makes embeddings only, expected one that generates: leave it out";
        return false;
    }
    ctx_size  = n_ctx;
    n_tokens  = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx)));
    n_columns = llama_model_n_embd_out(llama_get_model(ctx));
    char line[N_ERROR];
    skippable.assign(pyskip_n_layer(ctx), 0);
    if (pyskip_skippable(ctx, skippable.data(), skippable.size(), line, sizeof(line)) != PYSKIP_STATUS_OK) {
        unskippable = line;
    }
    skippable_attention.assign(skippable.size(), 0);
    if (unskippable.empty()) {
        pyskip_skippable_attention(ctx, skippable_attention.data(), skippable_attention.size(), line, sizeof(line));
    }
    pyskip_set_trace(ctx, MAX_TRACE);
    pyskip_set_streaming(ctx, pyskip_server_settings().low_memory);
    try {
        read_settings();
    } catch (const pyskip_bad_spec & e) {
        error = e.what();
        return false;
    }
    return true;
}

void pyskip_server_load(const std::string & path, const std::string & name, llama_context * ctx, int32_t n_ctx) {
    std::string error;
    if (!pyskip_server_model().load(path, name, ctx, n_ctx, error)) {
        std::fprintf(stderr, "pyskip: %s\n", error.c_str());
        std::_Exit(1);
    }
}

void pyskip_served_model::fail_without_profile(const std::string & what) const {
    throw pyskip_bad_spec(what + " needs a profile and " + fs::u8path(model_path).filename().u8string() +
                          " has none (no " + path_beside(model_path).filename().u8string() +
                          "): make one with pyskip calibrate, name one with --profile, or use cosine or static");
}

void pyskip_served_model::check_pace(const pyskip_spec & spec, pyskip_pacing & pacing) const {
    if (!profile) {
        fail_without_profile("target_tps");
    }
    if (pacing.max_skip < 0.0) {
        pacing.max_skip = std::floor(1000.0 * recommended()) / 1000.0;
    }
    check_rate(PYSKIP_SUBLAYER_FFN, pacing.max_skip);
    pyskip_pace_make(pacing, spec);
}

void pyskip_served_model::check(const pyskip_spec & spec) const {
    if (spec.type == PYSKIP_POLICY_OFF) {
        return;
    }
    if (!unskippable.empty()) {
        throw pyskip_bad_spec(unskippable);
    }
    if (spec.needs_profile()) {
        if (!profile) {
            fail_without_profile("skip '" + spec.str() + "'");
        }
        if (spec.type == PYSKIP_POLICY_PROFILE && spec.rate.is_set) {
            check_rate(PYSKIP_SUBLAYER_FFN, spec.rate.value);
        }
        if (spec.type == PYSKIP_POLICY_PROFILE && spec.prompt.is_set) {
            check_rate(PYSKIP_SUBLAYER_FFN, spec.prompt.value);
        }
        if (spec.attn.value > 0.0) {
            check_rate(PYSKIP_SUBLAYER_ATTENTION, spec.type == PYSKIP_POLICY_PROFILE ? spec.attn.value : 0.0);
        }
    }
    pyskip_rule       rule;
    std::string       line;
    pyskip_policy     asked = policy(spec);
    pyskip_static_set named;
    if (!pyskip_static_expand(asked, named, line) || !pyskip_rule_init(rule, asked, n_layer(), line)) {
        throw pyskip_bad_spec(line);
    }
    line = pyskip_rule_check_layers(rule, skippable, skippable_attention);
    if (!line.empty()) {
        throw pyskip_bad_spec(line);
    }
}

void pyskip_served_model::check_rate(pyskip_sublayer sublayer, double rate) const {
    char                 line[N_ERROR];
    pyskip_profile_point point;
    if (pyskip_profile_get_point_at(profile, sublayer, rate, &point, line, sizeof(line)) != PYSKIP_STATUS_OK) {
        throw pyskip_bad_spec(line);
    }
}

double pyskip_served_model::threshold(pyskip_sublayer sublayer, double rate) const {
    pyskip_profile_point point{};
    pyskip_profile_get_point_at(profile, sublayer, rate, &point, nullptr, 0);
    return point.threshold;
}

static double log_error(const pyskip_maybe & error) {
    return !error.is_set ? INFINITY : error.value > 0.0 ? std::log(error.value) : -INFINITY;
}

pyskip_policy pyskip_served_model::policy(const pyskip_spec & spec) const {
    pyskip_policy policy{};
    policy.type       = spec.type;
    policy.run        = spec.run;
    policy.cold_start = spec.cold_start;
    policy.cold_end   = spec.cold_end;
    policy.seed       = spec.seed;
    policy.layers     = spec.layers.data();
    policy.n_layers   = spec.layers.size();
    policy.warmup     = (int32_t) spec.warmup.value;

    policy.attention_layers   = spec.attention.data();
    policy.n_attention_layers = spec.attention.size();
    policy.n_sublayers        = spec.n_sublayers;
    policy.attention_rate     = (float) spec.attn.value;
    if (spec.type == PYSKIP_POLICY_COSINE) {
        policy.threshold = (float) std::clamp(spec.threshold, -3.0e38, 3.0e38);
    }
    if (spec.type == PYSKIP_POLICY_RANDOM) {
        policy.rate      = (float) spec.rate.value;
        policy.threshold = (float) log_error(spec.error);
        policy.profile   = spec.stand_in ? profile : nullptr;
    }
    if (spec.type == PYSKIP_POLICY_STATIC) {
        policy.n_sublayers = spec.n;
        policy.static_by   = spec.by == "cosine" ? PYSKIP_STATIC_BY_COSINE
                             : spec.by == "norm" ? PYSKIP_STATIC_BY_NORM
                                                 : PYSKIP_STATIC_BY_LOSS;
        policy.profile     = spec.needs_profile() ? profile : nullptr;
        policy.bare        = !spec.has_stand_ins();
    }
    if (spec.type == PYSKIP_POLICY_PROMPT) {
        policy.rate    = (float) spec.rate.value;
        policy.profile = profile;
    }
    if (spec.type == PYSKIP_POLICY_PROFILE) {
        const double rate = spec.rate.is_set ? spec.rate.value : recommended();
        policy.profile    = profile;
        policy.warmup     = spec.warmup.is_set ? policy.warmup : info.warmup;
        policy.hold       = spec.hold;
        policy.prefill    = spec.prefill;
        policy.rate       = (float) std::clamp(rate, 0.0, 1.0);
        policy.prompt     = (float) (spec.prefill && spec.hold ? rate : spec.prompt.value);
        policy.threshold  = (float) (spec.error.is_set ? log_error(spec.error) : threshold(PYSKIP_SUBLAYER_FFN, rate));
        if (spec.attn.value > 0.0) {
            policy.attention_threshold = (float) threshold(PYSKIP_SUBLAYER_ATTENTION, spec.attn.value);
        }
    }
    return policy;
}

// The C API of pyskip.h: model files, profiles, and the sums that make them.

#include "access.h"
#include "api.h"
#include "gather.h"
#include "gguf-inspect.h"
#include "state.h"
#include "sums.h"

#include <algorithm>
#include <cstring>

pyskip_status pyskip_gguf_inspect(const char * path, pyskip_gguf_info * info, char * error, size_t n_error) {
    return pyskip_guard(error, n_error, [&] {
        std::string line;
        if (!pyskip_gguf_read(path, *info, line)) {
            return pyskip_report(PYSKIP_STATUS_FILE, line, error, n_error);
        }
        return PYSKIP_STATUS_OK;
    });
}

pyskip_status pyskip_gguf_ffn_bytes(const char * path, int64_t * bytes, size_t n, char * error, size_t n_error) {
    return pyskip_guard(error, n_error, [&] {
        std::string line;
        if (!pyskip_gguf_read_ffn(path, bytes, n, line)) {
            return pyskip_report(PYSKIP_STATUS_FILE, line, error, n_error);
        }
        return PYSKIP_STATUS_OK;
    });
}

pyskip_status pyskip_profile_load(const char * path, pyskip_profile ** profile, char * error, size_t n_error) {
    return pyskip_guard(error, n_error, [&] {
        auto        loaded = std::make_shared<pyskip_profile>();
        std::string line;
        if (!pyskip_profile_read(path, *loaded, line)) {
            return pyskip_report(PYSKIP_STATUS_FILE, line, error, n_error);
        }
        loaded->self = loaded;
        *profile     = loaded.get();
        return PYSKIP_STATUS_OK;
    });
}

void pyskip_profile_free(pyskip_profile * profile) {
    if (profile) {
        const auto last = std::move(profile->self); // contexts that decide by it hold their own share
    }
}

void pyskip_profile_get(const pyskip_profile * profile, pyskip_profile_info * info) {
    *info = profile->info;
}

void pyskip_profile_get_points(const pyskip_profile * profile, pyskip_sublayer sublayer,
                               pyskip_profile_point * points) {
    std::copy(profile->curves[sublayer].begin(), profile->curves[sublayer].end(), points);
}

pyskip_status pyskip_profile_get_point_at(const pyskip_profile * profile, pyskip_sublayer sublayer, double rate,
                                          pyskip_profile_point * point, char * error, size_t n_error) {
    return pyskip_guard(error, n_error, [&] {
        std::string line;
        if (!pyskip_profile_at(*profile, sublayer, (float) rate, *point, line)) {
            return pyskip_report(PYSKIP_STATUS_INVALID, line, error, n_error);
        }
        return PYSKIP_STATUS_OK;
    });
}

int32_t pyskip_profile_get_static(const pyskip_profile * profile, pyskip_static_by by, pyskip_static_step * steps,
                                  int32_t n) {
    if (by < PYSKIP_STATIC_BY_LOSS || by > PYSKIP_STATIC_BY_NORM) {
        return 0;
    }
    const std::vector<pyskip_static_step> & all = profile->static_steps[by];
    std::copy_n(all.begin(), std::min(all.size(), (size_t) std::max(n, 0)), steps);
    return (int32_t) all.size();
}

void pyskip_profile_get_bytes(const pyskip_profile * profile, pyskip_sublayer sublayer, int64_t * stand_in_bytes,
                              int64_t * gate_bytes) {
    for (int32_t il = 0; il < profile->info.n_layer; ++il) {
        const pyskip_stand_in * own = profile->find(sublayer, il);
        stand_in_bytes[il]          = own ? own->bytes : 0;
        gate_bytes[il]              = own ? profile->gate_bytes : 0;
    }
}

bool pyskip_profile_fits(const pyskip_profile & profile, const llama_context * ctx, std::string & line) {
    const int32_t n_layer = pyskip_context_n_layer(ctx);
    const int32_t n_embd  = pyskip_context_n_embd(ctx);
    if (profile.info.n_layer == n_layer && profile.info.n_embd == n_embd) {
        return true;
    }
    line = "the profile is for a model of " + std::to_string(profile.info.n_layer) + " layers of " +
           std::to_string(profile.info.n_embd) + " values, this one has " + std::to_string(n_layer) + " of " +
           std::to_string(n_embd) + ": give the model's own profile";
    return false;
}

pyskip_status pyskip_gather_start(llama_context * ctx, pyskip_gather_kind kind, pyskip_sublayer sublayer,
                                  const pyskip_profile * profile, int32_t warmup, pyskip_gather ** gather, char * error,
                                  size_t n_error) {
    return pyskip_guard(error, n_error, [&] {
        pyskip_state & state = pyskip_state_make(ctx);
        std::string    line;
        if ((kind == PYSKIP_GATHER_HIDDEN || kind == PYSKIP_GATHER_ERRORS) != (profile != nullptr)) {
            return pyskip_report(PYSKIP_STATUS_INVALID,
                                 "hidden values and errors are those of a profile, the rest takes none", error,
                                 n_error);
        }
        if (sublayer == PYSKIP_SUBLAYER_ATTENTION && (kind == PYSKIP_GATHER_NEURONS || kind == PYSKIP_GATHER_HIDDEN)) {
            return pyskip_report(PYSKIP_STATUS_INVALID, "attention has no neurons: gather its outputs or errors", error,
                                 n_error);
        }
        if (kind == PYSKIP_GATHER_HIDDEN && std::strcmp(profile->info.stand_in, "gated") != 0) {
            return pyskip_report(PYSKIP_STATUS_INVALID,
                                 "the profile's stand-ins have no hidden values: give one with gated ones", error,
                                 n_error);
        }
        if (profile && !pyskip_profile_fits(*profile, ctx, line)) {
            return pyskip_report(PYSKIP_STATUS_INVALID, line, error, n_error);
        }
        if (!pyskip_context_probe(ctx, state, line)) {
            return pyskip_report(PYSKIP_STATUS_UNSUPPORTED, line, error, n_error);
        }
        *gather = new pyskip_gather(kind, sublayer, state.n_layer, pyskip_context_n_embd(ctx), warmup,
                                    profile ? profile->self : nullptr);
        state.set_gather(*gather);
        return PYSKIP_STATUS_OK;
    });
}

void pyskip_gather_set_targets(pyskip_gather * gather, const float * targets, int32_t n) {
    gather->targets.assign(targets, targets + n);
}

void pyskip_gather_get(const pyskip_gather * gather, int32_t il, pyskip_gather_sums * sums) {
    const pyskip_gather_layer & layer = gather->layers[il];

    *sums = {};
    if (layer.n_tokens == 0) {
        return;
    }
    sums->n_tokens = layer.n_tokens;
    sums->energy   = layer.energy;
    if (layer.gram) {
        pyskip_sums_mirror((float *) layer.gram->data, layer.gram->ne[0]);
        sums->gram    = (const float *) layer.gram->data;
        sums->cross   = (const float *) layer.cross->data;
        sums->n_row   = layer.cross->ne[0];
        sums->n_cross = layer.cross->ne[1];
    } else {
        sums->cross      = layer.totals.data();
        sums->n_row      = 1;
        sums->n_cross    = (int64_t) layer.totals.size();
        sums->activation = layer.activation;
    }
}

void pyskip_gather_free(llama_context * ctx, pyskip_gather * gather) {
    if (ctx) {
        pyskip_state_make(ctx).set_gather(nullptr);
    }
    delete gather;
}

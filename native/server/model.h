// What the server knows of its model: which policies it can run, and what they need. Written while the model is loaded, only
// read while requests run.

#pragma once

#include "pyskip.h"
#include "spec.h"

#include <cstdint>
#include <string>
#include <vector>

struct llama_context;

class pyskip_served_model {
public:
    // The model is loaded, the first time or again. False with a line in `error`.
    bool load(const std::string & path, const std::string & name, llama_context * ctx, int32_t n_ctx,
              std::string & error);

    // Throws pyskip_bad_spec if the model lacks what the specification asks for.
    void check(const pyskip_spec & spec) const;

    // Likewise for a pace from this specification's rate on. Gives it its max_skip if it has none.
    void check_pace(const pyskip_spec & spec, pyskip_pacing & pacing) const;

    // For pyskip_seq_set_policy(), of a specification that was checked. Valid as long as `spec` is.
    pyskip_policy policy(const pyskip_spec & spec) const;

    // Of a request that names none.
    const pyskip_spec & standard() const { return own; }

    const pyskip_pacing & standard_pace() const { return own_pace; }

    // Where a pace begins whose request names no policy.
    const pyskip_spec & floor() const { return own_floor; }

    // Whether the chat template puts tools to the model.
    void set_tools(bool known) { knows_tools = known; }
    bool has_tools() const { return knows_tools; }

    const std::string & name() const { return model_name; }
    int32_t             n_ctx() const { return ctx_size; }   // of one request
    int32_t             n_vocab() const { return n_tokens; } // 0 in front of several models
    int32_t             n_embd() const { return n_columns; } // of its embeddings, likewise
    int32_t             n_layer() const { return (int32_t) skippable.size(); }

    bool                                      has_profile() const { return profile != nullptr; }
    const std::vector<pyskip_profile_point> & curve() const { return points; }
    double                                    recommended() const { return points[info.recommended].rate; }
    const std::vector<uint8_t> &              layers() const { return skippable; }

    // The highest rate of attention that the profile knows; 0: it has no gates of attention.
    double max_attention() const { return attention_points.empty() ? 0.0 : attention_points.back().rate; }

    // How many sublayers the profile names to be left out.
    int32_t n_static(pyskip_static_by by) const {
        return profile ? pyskip_profile_get_static(profile, by, nullptr, 0) : 0;
    }

private:
    bool   find_profile(const std::string & path, std::string & error);
    bool   read_profile(const std::string & path, const std::string & fingerprint, bool is_asked_for,
                        std::string & error);
    double threshold(pyskip_sublayer sublayer, double rate) const;
    void   check_rate(pyskip_sublayer sublayer, double rate) const;
    void   read_settings();

    [[noreturn]] void fail_without_profile(const std::string & what) const;

    std::string          model_name;
    std::string          model_path;
    int32_t              ctx_size    = 0;
    int32_t              n_tokens    = 0;
    int32_t              n_columns   = 0;
    bool                 knows_tools = true;
    std::vector<uint8_t> skippable;
    std::vector<uint8_t> skippable_attention;
    std::string          unskippable; // why nothing can be skipped

    pyskip_profile *                  profile = nullptr;
    pyskip_profile_info               info{};
    std::vector<pyskip_profile_point> points;
    std::vector<pyskip_profile_point> attention_points;

    pyskip_spec   own;
    pyskip_spec   own_floor;
    pyskip_pacing own_pace;
};

pyskip_served_model & pyskip_server_model();

// From upstream's load_model(). Ends the process with a line if the model cannot run what the command line asks for.
void pyskip_server_load(const std::string & path, const std::string & name, llama_context * ctx, int32_t n_ctx);

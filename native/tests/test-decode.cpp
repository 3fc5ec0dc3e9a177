// test-decode MODEL PROFILE: decoding under every kind of policy, alone and in threads. `make test` runs it on the demo
// model, and `make sanitize` on a tiny one under the sanitizers, which is what it is for: it goes through as much of the
// code as a few tokens can. MODEL needs 5 layers or more, and 300 tokens.

#include "check.h"
#include "llama.h"
#include "pyskip.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr int32_t N_PROMPT = 12;
constexpr int32_t N_STEP   = 4;
constexpr size_t  N_TRACE  = 3;
constexpr int32_t N_THREAD = 4; // contexts at a time
const int32_t     LAYERS[] = { 1, 3, 4 };

using model_ptr   = std::unique_ptr<llama_model, decltype(&llama_model_free)>;
using context_ptr = std::unique_ptr<llama_context, decltype(&llama_free)>;
using profile_ptr = std::unique_ptr<pyskip_profile, decltype(&pyskip_profile_free)>;

[[noreturn]] void fail(const std::string & what) {
    std::fprintf(stderr, "test-decode: %s\n", what.c_str());
    std::exit(1);
}

model_ptr load_model(const char * path) {
    model_ptr model(llama_model_load_from_file(path, llama_model_default_params()), llama_model_free);
    if (!model) {
        fail(std::string("cannot load ") + path);
    }
    return model;
}

context_ptr make_context(llama_model * model) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx                = 128;
    params.n_batch              = 64;
    params.n_ubatch             = 8; // a prompt is more than one
    params.n_seq_max            = 2;
    params.kv_unified           = true;
    params.n_threads            = 2;
    params.n_threads_batch      = 2;
    context_ptr ctx(llama_init_from_model(model, params), llama_free);
    if (!ctx) {
        fail("cannot make a context");
    }
    return ctx;
}

struct arm {
    const char *  name;
    pyskip_policy policy;
};

std::vector<arm> make_arms(const pyskip_profile * profile) {
    pyskip_profile_info info;
    pyskip_profile_get(profile, &info);
    std::vector<pyskip_profile_point> curve(info.n_points);
    pyskip_profile_get_points(profile, PYSKIP_SUBLAYER_FFN, curve.data());

    std::vector<arm> arms = {
        { "off", {} },
        { "static", {} },
        { "cosine", {} },
        { "profile", {} },
        { "profile, prefill", {} },
        { "random", {} },
        { "random, stand-ins", {} },
        { "held", {} },
        { "static, attention", {} },
        { "adaskip", {} },
        { "prompt", {} },
        { "static, stand-ins", {} },
    };
    arms[1].policy.type     = PYSKIP_POLICY_STATIC;
    arms[1].policy.layers   = LAYERS;
    arms[1].policy.n_layers = std::size(LAYERS);

    arms[2].policy.type       = PYSKIP_POLICY_COSINE;
    arms[2].policy.threshold  = 0.9f;
    arms[2].policy.run        = 2;
    arms[2].policy.cold_start = 2;
    arms[2].policy.cold_end   = 2;
    arms[2].policy.warmup     = 1;

    for (int i : { 3, 4 }) {
        arms[i].policy.type      = PYSKIP_POLICY_PROFILE;
        arms[i].policy.profile   = profile;
        arms[i].policy.threshold = curve[info.recommended].threshold;
        arms[i].policy.prefill   = i == 4;
    }
    arms[7].policy                    = arms[3].policy;
    arms[7].policy.hold               = true;
    arms[7].policy.rate               = 0.4f;
    arms[7].policy.prompt             = 0.3f;
    arms[7].policy.warmup             = 2;
    arms[8].policy.type               = PYSKIP_POLICY_STATIC;
    arms[8].policy.layers             = LAYERS;
    arms[8].policy.n_layers           = 1;
    arms[8].policy.attention_layers   = LAYERS;
    arms[8].policy.n_attention_layers = std::size(LAYERS);

    arms[9].policy.type        = PYSKIP_POLICY_ADASKIP;
    arms[9].policy.n_sublayers = 3;

    arms[10].policy.type    = PYSKIP_POLICY_PROMPT;
    arms[10].policy.profile = profile;
    arms[10].policy.rate    = 0.4f;

    arms[11].policy         = arms[8].policy;
    arms[11].policy.profile = profile;
    for (int i : { 5, 6 }) {
        arms[i].policy.type      = PYSKIP_POLICY_RANDOM;
        arms[i].policy.rate      = 0.4f;
        arms[i].policy.seed      = 1;
        arms[i].policy.profile   = i == 6 ? profile : nullptr;
        arms[i].policy.threshold = INFINITY;
    }
    arms[5].policy.attention_rate = 0.3f;
    if (info.n_attention_points > 0) {
        arms.push_back({ "held, attention, too", arms[7].policy });
        arms.push_back({ "random, attention, too", arms[6].policy });
        arms[12].policy.attention_rate = 0.3f;
        arms[13].policy.attention_rate = 0.3f;
    }
    return arms;
}

void set_policy(llama_context * ctx, const arm & arm, int32_t seq_id = -1) {
    char error[512] = "";
    if (pyskip_seq_set_policy(ctx, seq_id, &arm.policy, error, sizeof(error)) != PYSKIP_STATUS_OK) {
        fail(std::string(arm.name) + ": " + error);
    }
}

// What one context decodes, by hand: positions and sequences of every token, and all logits that come out.
struct session {
    llama_context *    ctx;
    int32_t            n_past = 0;
    std::vector<float> logits{};

    int32_t n_vocab() const { return llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx))); }

    // n tokens for each of the first n_seq sequences. The token follows from its position, or from the last logits.
    int32_t decode(int32_t n, int32_t n_seq, llama_token first = -1) {
        llama_batch batch = llama_batch_init(n * n_seq, 0, 1);
        for (int32_t i = 0; i < n * n_seq; ++i) {
            const int32_t pos  = n_past + i / n_seq;
            batch.token[i]     = first >= 0 ? first : 100 + 37 * pos % 200;
            batch.pos[i]       = pos;
            batch.n_seq_id[i]  = 1;
            batch.seq_id[i][0] = i % n_seq;
            batch.logits[i]    = pos >= N_PROMPT - 1;
        }
        batch.n_tokens       = n * n_seq;
        const int32_t status = llama_decode(ctx, batch);
        if (status == 0) {
            const float * last = llama_get_logits_ith(ctx, -1);
            logits.insert(logits.end(), last, last + n_vocab());
            n_past += n;
        }
        llama_batch_free(batch);
        return status;
    }

    llama_token best() const {
        const float * last = logits.data() + logits.size() - n_vocab();
        return (llama_token) (std::max_element(last, last + n_vocab()) - last);
    }
};

// What was counted in each sequence is what was counted in all.
void check_sequences(const llama_context * ctx) {
    const int32_t        n_layer = pyskip_n_layer(ctx);
    std::vector<int64_t> evaluated(n_layer), skipped(n_layer), all(n_layer), sum(n_layer);
    int64_t              n_tokens = 0, n_all = 0, n_sum = 0;
    pyskip_get_counters(ctx, PYSKIP_PHASE_GENERATED, &n_all, evaluated.data(), all.data());
    for (int32_t seq_id : { 0, 1 }) {
        pyskip_seq_get_counters(ctx, seq_id, PYSKIP_PHASE_GENERATED, &n_tokens, evaluated.data(), skipped.data());
        n_sum += n_tokens;
        for (int32_t il = 0; il < n_layer; ++il) {
            sum[il] += skipped[il];
        }
    }
    CHECK(n_all == n_sum && all == sum);
}

// A prompt, single steps, another policy, a batch of generated tokens, two sequences, of two policies, and a shifted one.
std::vector<float> generate(llama_context * ctx, const arm & first, const arm & second) {
    session        s{ ctx };
    llama_memory_t mem = llama_get_memory(ctx);
    llama_memory_clear(mem, true);
    pyskip_reset_counters(ctx);

    set_policy(ctx, first);
    pyskip_set_generated_from(ctx, 0, N_PROMPT);
    CHECK(s.decode(N_PROMPT, 1) == 0);
    for (int32_t i = 0; i < N_STEP; ++i) {
        CHECK(s.decode(1, 1, s.best()) == 0);
    }
    set_policy(ctx, second);
    CHECK(s.decode(1, 1, s.best()) == 0);
    CHECK(s.decode(6, 1) == 0);

    llama_memory_seq_cp(mem, 0, 1, -1, -1);
    CHECK(s.decode(2, 2) == 0);
    set_policy(ctx, first, 1); // each sequence its own, in one batch
    CHECK(s.decode(5, 2) == 0);
    check_sequences(ctx);
    llama_memory_seq_keep(mem, 0);
    llama_memory_seq_rm(mem, 0, s.n_past - 2, -1);
    llama_memory_seq_rm(mem, 0, 2, 5);
    llama_memory_seq_add(mem, 0, 5, -1, -3);
    s.n_past -= 5;
    CHECK(s.decode(1, 1, s.best()) == 0);

    CHECK(std::all_of(s.logits.begin(), s.logits.end(), [](float value) { return std::isfinite(value); }));
    return s.logits;
}

// Every block of every token was evaluated or skipped; in the last layer only of tokens with an output.
void check_counters(llama_context * ctx) {
    const int32_t n_layer   = pyskip_n_layer(ctx);
    int64_t       n_skipped = 0;
    for (pyskip_phase phase : { PYSKIP_PHASE_PROMPT, PYSKIP_PHASE_GENERATED }) {
        int64_t              n_tokens = 0;
        std::vector<int64_t> evaluated(n_layer), skipped(n_layer);
        CHECK(pyskip_get_counters(ctx, phase, &n_tokens, evaluated.data(), skipped.data()) == PYSKIP_STATUS_OK);
        for (int32_t il = 0; il + 1 < n_layer; ++il) {
            CHECK(evaluated[il] + skipped[il] == n_tokens);
            n_skipped += skipped[il];
        }
        pyskip_seq_get_attention_counters(ctx, -1, phase, evaluated.data(), skipped.data());
        for (int32_t il = 0; il < n_layer; ++il) {
            CHECK(evaluated[il] + skipped[il] == n_tokens);
            n_skipped += skipped[il];
        }
    }
    CHECK(n_skipped > 0); // of two arms in turn one is not off
}

void check_trace(llama_context * ctx) {
    const size_t                    n_layer = (size_t) pyskip_n_layer(ctx);
    const size_t                    n       = N_TRACE + 1;
    std::vector<pyskip_trace_token> tokens(n);
    std::vector<uint8_t>            skipped(n * n_layer);
    std::vector<float>              sims(n * n_layer);
    CHECK(pyskip_seq_take_trace(ctx, 7, n, tokens.data(), skipped.data(), sims.data(), nullptr, nullptr) == 0);
    CHECK(pyskip_take_trace(ctx, n, tokens.data(), skipped.data(), sims.data()) == N_TRACE); // no more than are kept
    CHECK(pyskip_take_trace(ctx, n, tokens.data(), nullptr, nullptr) == 0);
    pyskip_set_trace(ctx, 0);
}

void gather(llama_context * ctx, pyskip_gather_kind kind, pyskip_sublayer sublayer, const pyskip_profile * profile) {
    char            error[512] = "";
    pyskip_gather * sums       = nullptr;
    if (pyskip_gather_start(ctx, kind, sublayer, profile, 1, &sums, error, sizeof(error)) != PYSKIP_STATUS_OK) {
        fail(error);
    }
    session s{ ctx };
    llama_memory_clear(llama_get_memory(ctx), true);
    pyskip_set_generated_from(ctx, 0, 0);
    CHECK(s.decode(N_PROMPT, 1) == 0);
    CHECK(s.decode(1, 1) == 0);
    pyskip_gather_sums found;
    pyskip_gather_get(sums, 3, &found);
    CHECK(found.n_tokens == N_PROMPT); // all but the one of the warm-up
    pyskip_gather_free(ctx, sums);
}

// Another thread stops a decode, and the context goes on afterwards.
void stop_and_go(llama_context * ctx, const arm & first, const arm & second, const std::vector<float> & expected) {
    pyskip_set_abort(ctx, false);
    std::thread stopper([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
        pyskip_set_abort(ctx, true);
    });
    int32_t     status = 0;
    while (status == 0) { // until a decode is stopped, or starts too late
        session s{ ctx };
        llama_memory_clear(llama_get_memory(ctx), true);
        status = s.decode(N_PROMPT, 1);
    }
    stopper.join();
    CHECK(status == 2);
    pyskip_set_abort(ctx, false);
    CHECK(generate(ctx, first, second) == expected);
}

// Each thread makes a context, decodes as others did before it, and frees it while the rest go on.
void in_threads(const std::vector<model_ptr> & models, const std::vector<arm> & arms,
                const std::vector<std::vector<float>> & expected) {
    std::vector<std::vector<float>> found(N_THREAD);
    std::vector<std::thread>        threads;
    for (int32_t i = 0; i < N_THREAD; ++i) {
        threads.emplace_back([&, i] {
            for (int32_t again = 0; again < 2; ++again) {
                const context_ptr ctx = make_context(models[i % models.size()].get());
                found[i]              = generate(ctx.get(), arms[i + 1], arms[i + 2]);
            }
        });
    }
    for (std::thread & thread : threads) {
        thread.join();
    }
    for (int32_t i = 0; i < N_THREAD; ++i) {
        CHECK(found[i] == expected[i + 1]);
    }
}

} // namespace

int main(int argc, char ** argv) {
    if (argc != 3) {
        fail("usage: test-decode MODEL PROFILE");
    }
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    if (ggml_backend_reg_count() == 0) {
        ggml_backend_load_all_from_path(PYSKIP_LIB_DIR); // of a wheel, whose back ends lie beside the library
    }
    llama_backend_init();
    {
        std::vector<model_ptr> models;
        models.push_back(load_model(argv[1]));
        models.push_back(load_model(argv[1]));

        char             error[512] = "";
        pyskip_profile * loaded     = nullptr;
        if (pyskip_profile_load(argv[2], &loaded, error, sizeof(error)) != PYSKIP_STATUS_OK) {
            fail(error);
        }
        const profile_ptr      profile(loaded, pyskip_profile_free);
        const std::vector<arm> arms = make_arms(profile.get());

        // each arm, then the next one, in one context
        std::vector<std::vector<float>> expected;
        {
            const context_ptr ctx = make_context(models[0].get());
            for (size_t i = 0; i < arms.size(); ++i) {
                const arm & second = arms[(i + 1) % arms.size()];
                pyskip_set_trace(ctx.get(), N_TRACE);
                expected.push_back(generate(ctx.get(), arms[i], second));
                std::printf("%s, then %s\n", arms[i].name, second.name);
                check_counters(ctx.get());
                check_trace(ctx.get());
            }
            gather(ctx.get(), PYSKIP_GATHER_OUTPUTS, PYSKIP_SUBLAYER_FFN, nullptr);
            gather(ctx.get(), PYSKIP_GATHER_NEURONS, PYSKIP_SUBLAYER_FFN, nullptr);
            gather(ctx.get(), PYSKIP_GATHER_HIDDEN, PYSKIP_SUBLAYER_FFN, profile.get());
            gather(ctx.get(), PYSKIP_GATHER_ERRORS, PYSKIP_SUBLAYER_FFN, profile.get());
            gather(ctx.get(), PYSKIP_GATHER_OUTPUTS, PYSKIP_SUBLAYER_ATTENTION, nullptr);
            gather(ctx.get(), PYSKIP_GATHER_STEPS, PYSKIP_SUBLAYER_ATTENTION, nullptr);
            pyskip_profile_info info;
            pyskip_profile_get(profile.get(), &info);
            if (info.n_attention_points > 0) {
                gather(ctx.get(), PYSKIP_GATHER_ERRORS, PYSKIP_SUBLAYER_ATTENTION, profile.get());
            }
            stop_and_go(ctx.get(), arms[3], arms[4], expected[3]);
        }
        in_threads(models, arms, expected);
    }
    llama_backend_free();
    return check_result("decode");
}

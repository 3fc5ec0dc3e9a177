#include "access.h"

#include "graph-pass.h"
#include "llama-context.h"
#include "llama-model.h"
#include "state.h"

#include <atomic>
#include <mutex>
#include <unordered_map>

namespace {

// Memory -> state of the context that owns it. Entries of freed contexts expire and are swept when one is added.
struct registry {
    std::mutex                                                              mutex;
    std::unordered_map<const llama_memory_i *, std::weak_ptr<pyskip_state>> states;
    std::atomic<bool>                                                       is_empty{ true };

    void add(const llama_memory_i * mem, const std::shared_ptr<pyskip_state> & state) {
        const std::lock_guard<std::mutex> lock(mutex);
        for (auto it = states.begin(); it != states.end();) {
            it = it->second.expired() ? states.erase(it) : std::next(it);
        }
        states[mem] = state;
        is_empty    = false;
    }

    std::shared_ptr<pyskip_state> find(const llama_memory_i * mem) {
        if (is_empty) {
            return nullptr;
        }
        const std::lock_guard<std::mutex> lock(mutex);
        const auto                        it = states.find(mem);
        return it == states.end() ? nullptr : it->second.lock();
    }
};

registry & all_states() {
    static registry * instance = new registry; // never destroyed: contexts may outlive static destruction
    return *instance;
}

} // namespace

const pyskip_state * pyskip_state_get(const llama_context * ctx) {
    return ctx->pyskip.get();
}

pyskip_state * pyskip_state_get(llama_context * ctx) {
    return ctx->pyskip.get();
}

pyskip_state & pyskip_state_make(llama_context * ctx) {
    if (!ctx->pyskip) {
        ctx->pyskip = std::make_shared<pyskip_state>(pyskip_context_n_layer(ctx));
        if (ctx->get_memory()) {
            all_states().add(ctx->get_memory(), ctx->pyskip);
        }
    }
    return *ctx->pyskip;
}

std::shared_ptr<pyskip_state> pyskip_state_of(const llama_memory_i * mem) {
    return all_states().find(mem);
}

int32_t pyskip_context_n_layer(const llama_context * ctx) {
    const auto & hparams = ctx->get_model().hparams;
    return (int32_t) (hparams.dec_n_layer > 0 ? hparams.dec_n_layer : hparams.n_layer()); // T5 counts its encoder's
}

int32_t pyskip_context_n_embd(const llama_context * ctx) {
    return (int32_t) ctx->get_model().hparams.n_embd;
}

// The graph that decodes one token, one of each sequence if each has a KV cache of its own; nullptr if the
// context does not generate text token by token.
static const ggml_cgraph * decode_graph(llama_context * ctx, std::string & error) {
    const std::string found  = "found a " + ctx->get_model().arch_name() + " context ";
    const char *      wanted = ", expected a decoder";
    if (!ctx->get_memory()) {
        error = found + "without a KV cache or recurrent state" + wanted;
        return nullptr;
    }
    if (!ctx->get_cparams().causal_attn) {
        error = found + "with non-causal attention" + wanted;
        return nullptr;
    }
    const llama_memory_context_ptr mctx = ctx->get_memory()->init_full();
    const uint32_t                 n    = ctx->get_cparams().kv_unified ? 1 : ctx->get_cparams().n_seq_max;
    const ggml_cgraph *            gf   = ctx->graph_reserve(n, n, n, mctx.get(), /*split_only =*/true);
    if (!ctx->get_gf_res_reserve()->get_logits()) {
        error = found + "without logits" + wanted;
        return nullptr;
    }
    return gf;
}

bool pyskip_context_generates(llama_context * ctx, std::string & error) {
    if (!decode_graph(ctx, error)) {
        error += ": take a model that generates text";
        return false;
    }
    return true;
}

bool pyskip_context_probe(llama_context * ctx, pyskip_state & state, std::string & error) {
    if (!state.skippable.empty()) {
        return true;
    }
    const ggml_cgraph * gf = decode_graph(ctx, error);
    if (!gf) {
        error += ": skipping is for models that generate text, run this one with skip off";
        return false;
    }
    std::vector<uint8_t> skippable(state.n_layer, 0);
    std::vector<uint8_t> skippable_attention(state.n_layer, 0);
    int32_t              n_found     = 0;
    int32_t              n_elsewhere = 0;
    for (const pyskip_block & block : pyskip_graph_find(gf)) {
        if (!block.on_cpu || block.il >= state.n_layer) {
            n_elsewhere += !block.on_cpu; // a layer of another machine: it runs dense
            continue;
        }
        if (block.sublayer == PYSKIP_SUBLAYER_ATTENTION) {
            skippable_attention[block.il] = 1;
        } else {
            skippable[block.il] = 1;
            n_found++;
        }
    }
    if (n_found == 0 && n_elsewhere > 0) {
        error = "every layer is on another back end than the CPU, expected some on the CPU: load the model with fewer "
                "n_gpu_layers, or run it with skip off";
        return false;
    }
    if (n_found == 0) {
        error = "found no feed-forward block in the graph of this " + ctx->get_model().arch_name() +
                " model, expected one "
                "that ends in blk.N.ffn_down: run it with skip off";
        return false;
    }
    state.is_shared           = n_elsewhere > 0;
    state.skippable           = std::move(skippable);
    state.skippable_attention = std::move(skippable_attention);
    return true;
}

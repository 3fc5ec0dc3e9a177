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
    std::mutex                                                             mutex;
    std::unordered_map<const llama_memory_i *, std::weak_ptr<pyskip_state>> states;
    std::atomic<bool>                                                      is_empty{ true };

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
    return (int32_t) ctx->get_model().hparams.n_layer();
}

int32_t pyskip_context_n_embd(const llama_context * ctx) {
    return (int32_t) ctx->get_model().hparams.n_embd;
}

bool pyskip_context_probe(llama_context * ctx, pyskip_state & state, std::string & error) {
    const llama_model & model = ctx->get_model();
    const std::string   arch  = model.arch_name();
    if (!ctx->get_memory()) {
        error = "found a " + arch + " context without a KV cache or recurrent state, expected a decoder: skipping is for "
                "models that generate text, run this one with skip off";
        return false;
    }
    if (!ctx->get_cparams().causal_attn) {
        error = "found a " + arch + " context with non-causal attention, expected a decoder: run it with skip off";
        return false;
    }
    std::vector<uint8_t>     skippable(state.n_layer, 0);
    int32_t                  n_found = 0;
    llama_memory_context_ptr mctx    = ctx->get_memory()->init_full();
    const ggml_cgraph *      gf      = ctx->graph_reserve(1, 1, 1, mctx.get(), /*split_only =*/ true);
    for (const pyskip_block & block : pyskip_graph_find(gf)) {
        if (!block.on_cpu) {
            error = "layer " + std::to_string(block.il) + " has its FFN on another back end than the CPU, expected all on "
                    "the CPU: load the model with n_gpu_layers=0";
            return false;
        }
        if (block.il < state.n_layer) {
            skippable[block.il] = 1;
            n_found++;
        }
    }
    if (n_found == 0) {
        error = "found no feed-forward block in the graph of this " + arch + " model, expected one that ends in "
                "blk.N.ffn_down: run it with skip off";
        return false;
    }
    state.skippable = std::move(skippable);
    return true;
}

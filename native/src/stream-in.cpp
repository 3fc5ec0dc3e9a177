#include "stream-in.h"

#include "ggml-backend.h"
#include "ggml-impl.h"
#include "ggml.h"

#include <cstdint>
#include <unordered_map>

#if defined(__unix__) || defined(__APPLE__)
#    include <sys/mman.h>
#    include <unistd.h>

static void advise(const ggml_tensor * weight, int advice) {
    const uintptr_t page  = (uintptr_t) sysconf(_SC_PAGESIZE);
    const uintptr_t begin = (uintptr_t) weight->data / page * page;
    const uintptr_t end   = (uintptr_t) weight->data + ggml_nbytes(weight);
    madvise((void *) begin, end - begin, advice); // only advice: if it is refused, nothing but time is lost
}

static void advise_alone(const ggml_tensor * weight) {
    advise(weight, MADV_RANDOM);
}

static void advise_soon(const ggml_tensor * weight) {
    advise(weight, MADV_WILLNEED);
}

static void advise_normal(const ggml_tensor * weight) {
    advise(weight, MADV_NORMAL);
}
#elif defined(_WIN32)
#    define WIN32_LEAN_AND_MEAN
#    include <windows.h>

static void advise_soon(const ggml_tensor * weight) {
    WIN32_MEMORY_RANGE_ENTRY range = { weight->data, ggml_nbytes(weight) };
    PrefetchVirtualMemory(GetCurrentProcess(), 1, &range, 0);
}

// How much is read around a page that is missing cannot be said of a part of a file.
static void advise_alone(const ggml_tensor *) {}
static void advise_normal(const ggml_tensor *) {}
#else
static void advise_alone(const ggml_tensor *) {}
static void advise_soon(const ggml_tensor *) {}
static void advise_normal(const ggml_tensor *) {}
#endif

// Experts keep llama.cpp's advice: a token reads some of them, and which is known too late to ask for them.
static bool is_weight(const ggml_tensor * node, const ggml_tensor * src) {
    return src && src->op == GGML_OP_NONE && src->data && src->buffer && node->op != GGML_OP_MUL_MAT_ID &&
           ggml_backend_buffer_get_usage(src->buffer) == GGML_BACKEND_BUFFER_USAGE_WEIGHTS;
}

void pyskip_stream_plan(const ggml_cgraph * gf, std::vector<pyskip_slot> & slots, pyskip_weights & first) {
    std::unordered_map<const ggml_tensor *, pyskip_slot *> owner; // of nodes that are computed only if a block runs
    std::unordered_map<const ggml_tensor *, pyskip_slot *> joins;
    for (pyskip_slot & slot : slots) {
        for (const ggml_tensor * node : slot.governed) {
            owner[node] = &slot;
        }
        joins[slot.block.join] = &slot;
    }
    first.clear();
    pyskip_weights * next = &first;
    for (int i = 0; i < gf->n_nodes; ++i) {
        const ggml_tensor * node  = gf->nodes[i];
        const auto          owned = owner.find(node);
        pyskip_weights &    place = owned == owner.end() ? *next : owned->second->region_weights;
        for (const ggml_tensor * src : node->src) {
            if (!is_weight(node, src)) {
                continue;
            }
            advise_alone(src);
            if (node->op != GGML_OP_GET_ROWS) {
                place.push_back(src);
            }
        }
        const auto joined = joins.find(node);
        if (joined != joins.end()) {
            next = &joined->second->next_weights;
        }
    }
}

void pyskip_stream_in(const pyskip_weights & weights) {
    for (const ggml_tensor * weight : weights) {
        advise_soon(weight);
    }
}

void pyskip_stream_end(const ggml_cgraph * gf) {
    for (int i = 0; i < gf->n_nodes; ++i) {
        for (const ggml_tensor * src : gf->nodes[i]->src) {
            if (is_weight(gf->nodes[i], src)) {
                advise_normal(src);
            }
        }
    }
}

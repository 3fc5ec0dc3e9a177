#include "slot.h"

#include "ggml.h"

#include <algorithm>

static void set_computed(ggml_tensor * node, bool is_computed) {
    if (is_computed) {
        node->flags |= GGML_TENSOR_FLAG_COMPUTE;
    } else {
        node->flags &= ~GGML_TENSOR_FLAG_COMPUTE;
    }
}

static void set_computed(const std::vector<ggml_tensor *> & nodes, bool is_computed) {
    for (ggml_tensor * node : nodes) {
        set_computed(node, is_computed);
    }
}

// A node without GGML_TENSOR_FLAG_COMPUTE is passed over by every thread before its barrier, weights unread
// (ggml_graph_compute_thread). Only a join of an earlier layer or the block's own gate changes it, and a barrier lies
// between.
void pyskip_slot::arm(bool run, bool stand_in_runs) {
    if (is_armed != run) {
        set_computed(governed, run);
        is_armed = run;
    }
    if (is_standing != stand_in_runs) {
        set_computed(stand_in, stand_in_runs);
        is_standing = stand_in_runs;
    }
}

void pyskip_slot::shape(int64_t n_run_now, int64_t n_skip) {
    for (ggml_tensor * node : governed) {
        node->ne[1] = n_run_now;
    }
    for (ggml_tensor * node : stand_in) {
        node->ne[1] = n_skip;
    }
    // as its readers in the region see it; the pack, which an empty tensor would leave out, writes all rows by their places
    set_computed(packed, !is_packed_at_once && n_run_now + n_skip > 0);
    packed->ne[1]         = std::max<int64_t>(n_run_now, 1);
    packed_skipped->ne[1] = n_skip;
    packed_skipped->data  = (char *) packed->data + n_run_now * packed->nb[1];
}

void pyskip_slot::restore() {
    if (!packed) {
        return;
    }
    for (auto * nodes : { &governed, &stand_in }) {
        for (ggml_tensor * node : *nodes) {
            node->ne[1] = n_rows;
        }
    }
    set_computed(packed, true);
    packed->ne[1]         = n_rows;
    packed_skipped->ne[1] = n_rows;
    packed_skipped->data  = packed->data;
}

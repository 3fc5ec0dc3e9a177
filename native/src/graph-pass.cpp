#include "graph-pass.h"

#include "ggml-backend.h"
#include "ggml-impl.h"
#include "ggml.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <map>
#include <unordered_map>
#include <unordered_set>

static bool skip_prefix(const char *& p, const char * prefix) {
    const size_t n = std::strlen(prefix);
    if (std::strncmp(p, prefix, n) != 0) {
        return false;
    }
    p += n;
    return true;
}

// The N of "blk.N", or of T5's decoder's "dec.blk.N", behind which `p` then points; else -1.
static int32_t skip_layer(const char *& p) {
    skip_prefix(p, "dec.");
    if (!skip_prefix(p, "blk.")) {
        return -1;
    }
    int32_t il      = 0;
    int     n_digit = 0;
    for (; *p >= '0' && *p <= '9' && n_digit < 7; ++p, ++n_digit) {
        il = il * 10 + (*p - '0');
    }
    return n_digit > 0 ? il : -1;
}

int32_t pyskip_ffn_down_layer(const char * name) {
    const char *  p  = name;
    const int32_t il = skip_layer(p);
    if (il < 0 || !(skip_prefix(p, ".ffn_down") || skip_prefix(p, ".channel_mix_value"))) {
        return -1;
    }
    return *p == '\0' || *p == '.' || *p == '_' ? il : -1; // ".weight", "_exps.weight", "_shexp.weight", ...
}

int32_t pyskip_attn_output_layer(const char * name) {
    const char *  p  = name;
    const int32_t il = skip_layer(p);
    if (il < 0 || !(skip_prefix(p, ".attn_output") || skip_prefix(p, ".attn_o"))) {
        return -1;
    }
    return *p == '\0' || *p == '.' ? il : -1; // ".weight", ".bias", ".scale", ...
}

namespace {

bool is_leaf(const ggml_tensor * t) {
    return t->op == GGML_OP_NONE;
}

// Ops with a recurrent state.
bool is_recurrent_op(const ggml_tensor * node) {
    switch (node->op) {
        case GGML_OP_SSM_CONV:
        case GGML_OP_SSM_SCAN:
        case GGML_OP_RWKV_WKV6:
        case GGML_OP_RWKV_WKV7:
        case GGML_OP_GATED_LINEAR_ATTN:
        case GGML_OP_GATED_DELTA_NET: return true;
        default: return false;
    }
}

// Writes into a tensor that is there before the graph and after it: a KV cache, say, and not a mask that the graph makes.
bool is_lasting_write(const ggml_tensor * node) {
    return (node->op == GGML_OP_SET_ROWS || node->op == GGML_OP_CPY) && node->view_src && is_leaf(node->view_src);
}

// What an FFN's region cannot hold: ops that mix tokens, or write to the KV cache or a recurrent state.
bool is_sequence_op(const ggml_tensor * node) {
    switch (node->op) {
        case GGML_OP_FLASH_ATTN_EXT:
        case GGML_OP_ROPE:
        case GGML_OP_SET_ROWS: return true;
        case GGML_OP_SOFT_MAX: return node->src[1] != nullptr; // with a mask it is attention, without one a router
        default: return is_recurrent_op(node);
    }
}

bool is_stream(const ggml_tensor * t, const ggml_tensor * like) {
    return t->type == GGML_TYPE_F32 && ggml_are_same_shape(t, like) && ggml_is_contiguous(t);
}

bool on_cpu(const ggml_tensor * weight) {
    if (weight->buffer == nullptr) {
        return true;
    }
    ggml_backend_dev_t dev = ggml_backend_buft_get_device(ggml_backend_buffer_get_type(weight->buffer));
    return dev == nullptr || ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_CPU;
}

bool is_of_attention(const ggml_tensor * node) {
    const auto is_ffn = [](const ggml_tensor * src) { return src && pyskip_ffn_down_layer(src->name) >= 0; };
    return !is_recurrent_op(node) && !is_lasting_write(node) &&
           std::none_of(std::begin(node->src), std::end(node->src), is_ffn);
}

class finder {
public:
    explicit finder(const ggml_cgraph * gf) : gf(gf), n_uses(gf->n_nodes, 0) {
        index.reserve(2 * gf->n_nodes);
        for (int i = 0; i < gf->n_nodes; ++i) {
            index[gf->nodes[i]] = i;
        }
        for (int i = 0; i < gf->n_nodes; ++i) {
            for_each_source(i, [&](int j) { n_uses[j]++; });
        }
    }

    std::vector<pyskip_block> find() {
        std::vector<pyskip_block> blocks;
        int                       last_join = -1;
        for (const auto & [il, marks] : find_marks(pyskip_ffn_down_layer)) {
            pyskip_block block;
            block.il         = il;
            const int i_join = find_join(marks, block);
            if (i_join > last_join && fill_region(i_join, last_join, marks, block)) {
                fill_rest(i_join, block);
                fill_input(block, find_first(block));
                fill_rowwise(block);
                blocks.push_back(std::move(block));
                last_join = i_join;
            }
        }
        for (const auto & [il, marks] : find_marks(pyskip_attn_output_layer)) {
            add_attention(il, marks, blocks);
        }
        return blocks;
    }

private:
    using layer_of = int32_t (*)(const char * name);

    // By layer the nodes that read one of the weights that a sublayer ends in.
    std::map<int32_t, std::vector<int>> find_marks(layer_of layer) const {
        std::map<int32_t, std::vector<int>> marked;
        for (int i = 0; i < gf->n_nodes; ++i) {
            for (const ggml_tensor * src : gf->nodes[i]->src) {
                const int32_t il = src && is_leaf(src) ? layer(src->name) : -1;
                if (il >= 0) {
                    marked[il].push_back(i);
                    break;
                }
            }
        }
        return marked;
    }

    // Among the blocks found so far, if it fits between two of them.
    void add_attention(int32_t il, const std::vector<int> & marks, std::vector<pyskip_block> & blocks) const {
        pyskip_block block;
        block.il          = il;
        block.sublayer    = PYSKIP_SUBLAYER_ATTENTION;
        const int  i_join = find_join(marks, block);
        const auto next   = std::find_if(blocks.begin(), blocks.end(),
                                         [&](const pyskip_block & b) { return index.at(b.join) >= i_join; });
        if (i_join < 0 || (next != blocks.end() && index.at(next->region.front()) < i_join)) {
            return; // an FFN that is computed beside it
        }
        const int last_join = next == blocks.begin() ? -1 : index.at(std::prev(next)->join);
        if (fill_region(i_join, last_join, marks, block)) {
            fill_rest(i_join, block);
            fill_input(block, find_first(block, i_join, last_join));
            blocks.insert(next, std::move(block));
        }
    }

    template <typename F> void for_each_source(int i, F visit) const {
        for (const ggml_tensor * src : gf->nodes[i]->src) {
            const auto it = src ? index.find(src) : index.end();
            if (it != index.end()) {
                visit(it->second);
            }
        }
    }

    // The first ADD of which one operand holds all that the marked nodes compute and the other nothing of it.
    int find_join(const std::vector<int> & marks, pyskip_block & block) const {
        std::vector<char> below(gf->n_nodes, 0); // computed from a marked node
        for (int i : marks) {
            below[i] = 1;
        }
        const auto is_below = [&](const ggml_tensor * t) {
            const auto it = index.find(t);
            return it != index.end() && below[it->second];
        };
        for (int i = marks.front(); i < gf->n_nodes; ++i) {
            ggml_tensor * node = gf->nodes[i];
            for_each_source(i, [&](int j) { below[i] |= below[j]; });
            if (!below[i] || node->op != GGML_OP_ADD) {
                continue;
            }
            const bool a = is_below(node->src[0]);
            const bool b = is_below(node->src[1]);
            if (a == b) {
                continue;
            }
            ggml_tensor * y = node->src[a ? 0 : 1];
            ggml_tensor * x = node->src[a ? 1 : 0];
            if (is_leaf(x) || !is_stream(x, node) || !is_stream(y, node) || !is_stream(node, node)) {
                continue;
            }
            block.join = node;
            block.x    = x;
            block.y    = y;
            return i;
        }
        return -1;
    }

    // Backwards from the join: a node belongs to the region when everything that uses it does.
    bool fill_region(int i_join, int last_join, const std::vector<int> & marks, pyskip_block & block) const {
        std::vector<int>  n_inner(gf->n_nodes, 0);
        std::vector<char> inside(gf->n_nodes, 0);
        n_inner[index.at(block.y)] = 1;
        for (int i = i_join - 1; i > last_join; --i) {
            ggml_tensor * node = gf->nodes[i];
            if (n_uses[i] == 0 || n_inner[i] != n_uses[i] || (node->flags & GGML_TENSOR_FLAG_OUTPUT)) {
                continue;
            }
            if (block.sublayer == PYSKIP_SUBLAYER_ATTENTION ? !is_of_attention(node) : is_sequence_op(node)) {
                return false;
            }
            inside[i] = 1;
            for_each_source(i, [&](int j) { n_inner[j]++; });
            if (node->flags & GGML_TENSOR_FLAG_COMPUTE) {
                block.region.push_back(node);
            }
            for (const ggml_tensor * src : node->src) {
                if (src && is_leaf(src) && src->buffer) {
                    block.on_cpu &= on_cpu(src);
                }
            }
        }
        std::reverse(block.region.begin(), block.region.end());
        return std::all_of(marks.begin(), marks.end(), [&](int i) { return inside[i]; });
    }

    static bool is_product(const ggml_tensor * node) { return node->op == GGML_OP_MUL_MAT && is_leaf(node->src[0]); }

    // The first product with a weight in an FFN's region.
    const ggml_tensor * find_first(const pyskip_block & block) const {
        const auto first = std::find_if(block.region.begin(), block.region.end(), is_product);
        return first == block.region.end() ? nullptr : *first;
    }

    // Of attention the first between the stream and y, in the region or not: one weight may yield Q, K and V.
    const ggml_tensor * find_first(const pyskip_block & block, int i_join, int last_join) const {
        const ggml_tensor * first = nullptr;
        std::vector<char>   above(gf->n_nodes, 0); // y is computed from it

        above[index.at(block.y)] = 1;
        for (int i = i_join - 1; i > last_join; --i) {
            if (!above[i] || gf->nodes[i] == block.x) {
                continue;
            }
            for_each_source(i, [&](int j) { above[j] = 1; });
            first = is_product(gf->nodes[i]) ? gf->nodes[i] : first;
        }
        return first;
    }

    // `first`: the product whose second operand is the input.
    void fill_input(pyskip_block & block, const ggml_tensor * first) const {
        if (first == nullptr || !is_stream(first->src[1], block.join) || is_leaf(first->src[1])) {
            return;
        }
        block.input = first->src[1];

        std::unordered_set<const ggml_tensor *> needed = { block.input };
        for (auto it = block.region.rbegin(); it != block.region.rend(); ++it) {
            if (needed.count(*it)) {
                block.prelude.insert(block.prelude.begin(), *it);
                for_each_source(index.at(*it), [&](int j) { needed.insert(gf->nodes[j]); });
            }
        }
    }

    // How far the region depends on the input's rows alone.
    void fill_rowwise(pyskip_block & block) const {
        if (block.input == nullptr) {
            return;
        }
        const std::unordered_set<const ggml_tensor *> prelude(block.prelude.begin(), block.prelude.end());
        std::unordered_set<const ggml_tensor *>       rows = { block.input };
        block.is_rowwise = std::all_of(block.region.begin(), block.region.end(), [&](const ggml_tensor * node) {
            if (prelude.count(node)) {
                return true;
            }
            rows.insert(node);
            return maps_rows(node, rows, ggml_nrows(block.join));
        });
    }

    // Whether row i of the node is computed from row i of nodes in `rows` and from weights alone.
    static bool maps_rows(const ggml_tensor * node, const std::unordered_set<const ggml_tensor *> & rows,
                          int64_t n_rows) {
        switch (node->op) {
            case GGML_OP_MUL_MAT:
            case GGML_OP_ADD:
            case GGML_OP_MUL:
            case GGML_OP_SCALE:
            case GGML_OP_SQR:
            case GGML_OP_NORM:
            case GGML_OP_RMS_NORM:
            case GGML_OP_UNARY:
            case GGML_OP_GLU: break;
            default: return false;
        }
        const auto is_rows = [&](const ggml_tensor * t) {
            return rows.count(t) && t->ne[1] == n_rows && t->ne[2] == 1 && t->ne[3] == 1;
        };
        if (!is_rows(node)) {
            return false;
        }
        for (int i = 0; i < GGML_MAX_SRC; ++i) {
            const ggml_tensor * src = node->src[i];
            if (src == nullptr || is_rows(src)) {
                continue;
            }
            const bool is_weight = is_leaf(src) && (node->op == GGML_OP_MUL_MAT ? i == 0 : ggml_nrows(src) == 1);
            if (!is_weight) {
                return false;
            }
        }
        return true;
    }

    // ADDs that complete the stream after the join: each uses nothing but the sum so far and something older.
    void fill_rest(int i_join, pyskip_block & block) const {
        int          i   = i_join;
        const size_t max = GGML_MAX_SRC - 3; // beside x, y and the stand-in
        while (n_uses[i] == 1 && block.rest.size() < max) {
            const ggml_tensor * sum  = gf->nodes[i];
            int                 next = i + 1;
            while (next < gf->n_nodes && gf->nodes[next]->src[0] != sum && gf->nodes[next]->src[1] != sum) {
                next++;
            }
            if (next == gf->n_nodes || gf->nodes[next]->op != GGML_OP_ADD) {
                return;
            }
            const ggml_tensor * node  = gf->nodes[next];
            ggml_tensor *       other = node->src[node->src[0] == sum ? 1 : 0];
            const auto          it    = index.find(other);
            if (it == index.end() || it->second > i_join || !is_stream(other, sum)) {
                return;
            }
            block.rest.push_back(other);
            i = next;
        }
    }

    const ggml_cgraph * gf;

    std::unordered_map<const ggml_tensor *, int> index;
    std::vector<int>                             n_uses; // by nodes of the graph
};

} // namespace

std::vector<pyskip_block> pyskip_graph_find(const ggml_cgraph * gf) {
    return finder(gf).find();
}

void pyskip_graph_place(ggml_cgraph * gf, const ggml_tensor * join, const std::vector<ggml_tensor *> & group) {
    const std::unordered_set<const ggml_tensor *> moved(group.begin(), group.end());

    std::vector<ggml_tensor *> order;
    order.reserve(gf->n_nodes);
    for (int i = 0; i < gf->n_nodes; ++i) {
        if (gf->nodes[i] == join) {
            order.insert(order.end(), group.begin(), group.end());
        }
        if (!moved.count(gf->nodes[i])) {
            order.push_back(gf->nodes[i]);
        }
    }
    std::copy(order.begin(), order.end(), gf->nodes);
}

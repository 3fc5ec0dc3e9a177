// The graph pass on graphs made by hand: which ADD joins, which nodes are the region, and what must never be in it.

#include "check.h"
#include "ggml-backend-impl.h"
#include "ggml-impl.h"
#include "ggml.h"
#include "graph-pass.h"

#include <algorithm>
#include <string>
#include <vector>

static const int64_t N_EMBD = 8;
static const int64_t N_FF   = 16;

struct builder {
    ggml_context * ctx = ggml_init({ 16 << 20, nullptr, true });
    ggml_cgraph *  gf  = ggml_new_graph(ctx);

    ~builder() { ggml_free(ctx); }

    ggml_tensor * weight(const std::string & name, int64_t n_in, int64_t n_out) {
        ggml_tensor * t = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n_in, n_out);
        return ggml_set_name(t, name.c_str());
    }
    ggml_tensor * input() { return ggml_scale(ctx, ggml_new_tensor_2d(ctx, GGML_TYPE_F32, N_EMBD, 3), 2.0f); }
    ggml_tensor * norm(ggml_tensor * x) { return ggml_rms_norm(ctx, x, 1e-5f); }

    // As llama.cpp's: K is written to a cache, which the scores read.
    ggml_tensor * attention(int il, ggml_tensor * x) {
        const std::string blk   = "blk." + std::to_string(il) + ".";
        ggml_tensor *     cache = weight("cache_k", N_EMBD, N_EMBD);
        ggml_tensor *     rows  = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, 3);
        ggml_tensor *     k     = ggml_mul_mat(ctx, weight(blk + "attn_k.weight", N_EMBD, N_EMBD), x);
        ggml_build_forward_expand(gf, ggml_set_rows(ctx, cache, k, rows));
        ggml_tensor * q  = ggml_mul_mat(ctx, weight(blk + "attn_q.weight", N_EMBD, N_EMBD), x);
        ggml_tensor * kq = ggml_mul_mat(ctx, ggml_view_2d(ctx, cache, N_EMBD, N_EMBD, cache->nb[1], 0), q);
        kq               = ggml_soft_max_ext(ctx, kq, ggml_new_tensor_2d(ctx, GGML_TYPE_F32, N_EMBD, 3), 1.0f, 0.0f);
        return ggml_mul_mat(ctx, weight(blk + "attn_output.weight", N_EMBD, N_EMBD), kq);
    }
    ggml_tensor * ffn(int il, ggml_tensor * x) {
        const std::string blk = "blk." + std::to_string(il) + ".";
        ggml_tensor *     h   = ggml_silu(ctx, ggml_mul_mat(ctx, weight(blk + "ffn_up.weight", N_EMBD, N_FF), x));
        return ggml_mul_mat(ctx, weight(blk + "ffn_down.weight", N_FF, N_EMBD), h);
    }
    std::vector<pyskip_block> find(ggml_tensor * out) {
        ggml_build_forward_expand(gf, out);
        return pyskip_graph_find(gf);
    }
};

static bool has(const pyskip_block & block, const ggml_tensor * node) {
    return std::find(block.region.begin(), block.region.end(), node) != block.region.end();
}

static void test_names() {
    CHECK(pyskip_ffn_down_layer("blk.5.ffn_down.weight") == 5);
    CHECK(pyskip_ffn_down_layer("blk.12.ffn_down_exps.weight") == 12);
    CHECK(pyskip_ffn_down_layer("blk.0.ffn_down.weight.lora_a") == 0);
    CHECK(pyskip_ffn_down_layer("blk.5.attn_output.weight") == -1);
    CHECK(pyskip_ffn_down_layer("blk.5.ffn_downstream.weight") == -1);
    CHECK(pyskip_ffn_down_layer("blk..ffn_down.weight") == -1);
    CHECK(pyskip_ffn_down_layer("blk.5x.ffn_down.weight") == -1);
    CHECK(pyskip_ffn_down_layer("enc.blk.5.ffn_down.weight") == -1);
    CHECK(pyskip_ffn_down_layer("dec.blk.5.ffn_down.weight") == 5);
    CHECK(pyskip_ffn_down_layer("blk.5.channel_mix_value.weight") == 5);
    CHECK(pyskip_ffn_down_layer("blk.5.channel_mix_key.weight") == -1);
    CHECK(pyskip_ffn_down_layer("dec.blk.5.cross_attn_o.weight") == -1);
    CHECK(pyskip_ffn_down_layer("blk.99999999999999.ffn_down.weight") == -1);

    CHECK(pyskip_attn_output_layer("blk.5.attn_output.weight") == 5);
    CHECK(pyskip_attn_output_layer("blk.12.attn_output.bias") == 12);
    CHECK(pyskip_attn_output_layer("dec.blk.3.attn_o.weight") == 3);
    CHECK(pyskip_attn_output_layer("enc.blk.3.attn_o.weight") == -1);
    CHECK(pyskip_attn_output_layer("dec.blk.3.cross_attn_o.weight") == -1);
    CHECK(pyskip_attn_output_layer("blk.5.attn_output_norm.weight") == -1);
    CHECK(pyskip_attn_output_layer("blk.5.attn_out.weight") == -1);
    CHECK(pyskip_attn_output_layer("blk.5.ffn_down.weight") == -1);
    CHECK(pyskip_attn_output_layer("blk.5.vis_attn_output.weight") == -1);
}

static void test_serial() {
    builder       b;
    ggml_tensor * x = b.input();
    for (int il = 0; il < 2; ++il) {
        ggml_tensor * mid = ggml_add(b.ctx, b.attention(il, b.norm(x)), x);
        x                 = ggml_add(b.ctx, b.ffn(il, b.norm(mid)), mid);
    }
    const auto blocks = b.find(b.norm(x));
    CHECK(blocks.size() == 4); // attention, FFN, attention, FFN
    for (int i = 0; i < 4; ++i) {
        CHECK(blocks[i].il == i / 2);
        CHECK(blocks[i].sublayer == (i % 2 ? PYSKIP_SUBLAYER_FFN : PYSKIP_SUBLAYER_ATTENTION));
    }
    const pyskip_block & ffn = blocks[3];
    CHECK(ffn.join == x);
    CHECK(ffn.x == x->src[1] && ffn.y == x->src[0]);
    CHECK(ffn.region.size() == 4); // norm, up, silu, down
    CHECK(ffn.rest.empty());
    CHECK(ffn.input == ffn.region[0] && ffn.input->op == GGML_OP_RMS_NORM);
    CHECK(ffn.prelude.size() == 1 && ffn.prelude[0] == ffn.input);
    CHECK(ffn.is_rowwise);
    for (const ggml_tensor * node : ffn.region) {
        CHECK(node->op != GGML_OP_SOFT_MAX && node->op != GGML_OP_ADD);
    }
    const pyskip_block & attention = blocks[2];
    CHECK(attention.join == ffn.x && attention.x == blocks[1].join);
    CHECK(attention.region.size() ==
          5); // Q, the cache's view, scores, soft_max, output: neither norm nor K nor its write
    for (const ggml_tensor * node : attention.region) {
        CHECK(node->op != GGML_OP_RMS_NORM && node->op != GGML_OP_SET_ROWS);
        CHECK(std::string(node->src[0]->name) != "blk.1.attn_k.weight");
    }
    CHECK(attention.input && attention.input->op == GGML_OP_RMS_NORM && attention.input->src[0] == attention.x);
    CHECK(attention.prelude.empty() && !attention.is_rowwise); // K and V need the input, too
}

// One weight for Q, K and V, which the cache needs: the region begins behind it, and what it reads is the input all the same.
static void test_attention_of_one_weight() {
    builder       b;
    ggml_tensor * x      = b.input();
    ggml_tensor * normed = b.norm(x);
    ggml_tensor * cache  = b.weight("cache_k", N_EMBD, N_EMBD);
    ggml_tensor * rows   = ggml_new_tensor_1d(b.ctx, GGML_TYPE_I64, 3);
    ggml_tensor * qk     = ggml_mul_mat(b.ctx, b.weight("blk.0.attn_qkv.weight", N_EMBD, 2 * N_EMBD), normed);
    ggml_tensor * k      = ggml_view_2d(b.ctx, qk, N_EMBD, 3, qk->nb[1], N_EMBD * sizeof(float));
    ggml_build_forward_expand(b.gf, ggml_set_rows(b.ctx, cache, k, rows));
    ggml_tensor * q      = ggml_cont(b.ctx, ggml_view_2d(b.ctx, qk, N_EMBD, 3, qk->nb[1], 0));
    ggml_tensor * kq     = ggml_mul_mat(b.ctx, ggml_view_2d(b.ctx, cache, N_EMBD, N_EMBD, cache->nb[1], 0), q);
    ggml_tensor * y      = ggml_mul_mat(b.ctx, b.weight("blk.0.attn_output.weight", N_EMBD, N_EMBD), kq);
    ggml_tensor * mid    = ggml_add(b.ctx, y, x);
    const auto    blocks = b.find(ggml_add(b.ctx, b.ffn(0, b.norm(mid)), mid));
    CHECK(blocks.size() == 2 && blocks[0].sublayer == PYSKIP_SUBLAYER_ATTENTION);
    CHECK(blocks[0].input == normed && !has(blocks[0], qk) && has(blocks[0], q));
}

// As in llama.cpp's last layer, where what no output needs is dropped behind attention: no row of the input per row of y.
static void test_attention_that_drops_rows() {
    builder       b;
    ggml_tensor * x      = b.input();
    ggml_tensor * kept   = ggml_new_tensor_1d(b.ctx, GGML_TYPE_I32, 1);
    ggml_tensor * y      = ggml_get_rows(b.ctx, b.attention(0, b.norm(x)), kept);
    ggml_tensor * mid    = ggml_add(b.ctx, y, ggml_get_rows(b.ctx, x, kept));
    const auto    blocks = b.find(ggml_add(b.ctx, b.ffn(0, b.norm(mid)), mid));
    CHECK(blocks.size() == 2 && blocks[0].sublayer == PYSKIP_SUBLAYER_ATTENTION && blocks[0].input == nullptr);
}

// Attention whose write to the cache nothing but the scores need would lose its K.
static void test_attention_that_writes() {
    builder       b;
    ggml_tensor * x      = b.input();
    ggml_tensor * cache  = b.weight("cache_k", N_EMBD, 3);
    ggml_tensor * k      = ggml_set_rows(b.ctx, cache, b.norm(x), ggml_new_tensor_1d(b.ctx, GGML_TYPE_I64, 3));
    ggml_tensor * kq     = ggml_mul_mat(b.ctx, k, x);
    ggml_tensor * mixed  = ggml_mul_mat(b.ctx, b.weight("blk.0.attn_output.weight", 3, N_EMBD), kq);
    ggml_tensor * mid    = ggml_add(b.ctx, mixed, x);
    const auto    blocks = b.find(ggml_add(b.ctx, b.ffn(0, b.norm(mid)), mid));
    CHECK(blocks.size() == 1 && blocks[0].sublayer == PYSKIP_SUBLAYER_FFN);
}

static void test_operands_swapped_bias_and_post_norm() {
    builder       b;
    ggml_tensor * x      = b.input();
    ggml_tensor * bias   = b.weight("blk.0.ffn_down.bias", N_EMBD, 1);
    ggml_tensor * y      = b.norm(ggml_add(b.ctx, b.ffn(0, b.norm(x)), bias));
    ggml_tensor * z      = ggml_add(b.ctx, x, y);
    const auto    blocks = b.find(z);
    CHECK(blocks.size() == 1);
    CHECK(blocks[0].join == z && blocks[0].x == x && blocks[0].y == y);
    CHECK(blocks[0].region.size() == 6);
}

static void test_parallel_attention() {
    builder       b;
    ggml_tensor * x      = b.input();
    ggml_tensor * normed = b.norm(x); // shared: must not be in the region
    ggml_tensor * attn   = b.attention(0, normed);
    ggml_tensor * sum    = ggml_add(b.ctx, b.ffn(0, normed), attn);
    const auto    blocks = b.find(b.norm(ggml_add(b.ctx, sum, x)));
    CHECK(blocks.size() == 1);
    CHECK(blocks[0].join == sum && blocks[0].x == attn);
    CHECK(!has(blocks[0], normed) && !has(blocks[0], attn));
    CHECK(blocks[0].rest.size() == 1 && blocks[0].rest[0] == x);
    CHECK(blocks[0].input == normed && blocks[0].prelude.empty() && blocks[0].is_rowwise);
}

static void test_lora_and_experts_join_once() {
    builder       b;
    ggml_tensor * x      = b.input();
    ggml_tensor * h      = ggml_silu(b.ctx, ggml_mul_mat(b.ctx, b.weight("blk.0.ffn_up.weight", N_EMBD, N_FF), x));
    ggml_tensor * down   = ggml_mul_mat(b.ctx, b.weight("blk.0.ffn_down.weight", N_FF, N_EMBD), h);
    ggml_tensor * a      = ggml_mul_mat(b.ctx, b.weight("blk.0.ffn_down.weight.lora_a", N_FF, 2), h);
    ggml_tensor * ab     = ggml_mul_mat(b.ctx, b.weight("blk.0.ffn_down.weight.lora_b", 2, N_EMBD), a);
    ggml_tensor * shared = ggml_mul_mat(b.ctx, b.weight("blk.0.ffn_down_shexp.weight", N_EMBD, N_EMBD), x);
    ggml_tensor * y      = ggml_add(b.ctx, ggml_add(b.ctx, down, ab), shared);
    ggml_tensor * z      = ggml_add(b.ctx, y, x);
    const auto    blocks = b.find(z);
    CHECK(blocks.size() == 1);
    CHECK(blocks[0].join == z && blocks[0].y == y);
    CHECK(has(blocks[0], ab) && has(blocks[0], shared));
}

static void test_refused() {
    {
        // attention feeds nothing but the FFN: its region would hold attention
        builder       b;
        ggml_tensor * x = b.input();
        CHECK(b.find(ggml_add(b.ctx, b.ffn(0, b.attention(0, b.norm(x))), x)).empty());
    }
    {
        // no residual
        builder b;
        CHECK(b.find(b.ffn(0, b.norm(b.input()))).empty());
    }
    {
        // the FFN's output is used elsewhere too
        builder       b;
        ggml_tensor * x = b.input();
        ggml_tensor * y = b.ffn(0, b.norm(x));
        ggml_build_forward_expand(b.gf, ggml_add(b.ctx, y, x));
        CHECK(b.find(ggml_sqr(b.ctx, y)).empty());
    }
}

static void test_rows_that_mix() {
    builder       b;
    ggml_tensor * x = b.input();
    ggml_tensor * y = b.ffn(0, b.norm(x));
    ggml_tensor * m = ggml_add(b.ctx, y, ggml_repeat(b.ctx, ggml_mean(b.ctx, y), y)); // not on the list of row-wise ops
    const auto    blocks = b.find(ggml_add(b.ctx, m, x));
    CHECK(blocks.size() == 1 && blocks[0].input && !blocks[0].is_rowwise);
}

static void test_place() {
    builder       b;
    ggml_tensor * x     = b.input();
    ggml_tensor * z     = ggml_add(b.ctx, b.ffn(0, b.norm(x)), x);
    ggml_tensor * after = b.norm(z);
    const auto    block = b.find(after)[0];
    const int     n_old = b.gf->n_nodes;
    ggml_tensor * made  = ggml_sqr(b.ctx, block.input);
    ggml_build_forward_expand(b.gf, made);
    pyskip_graph_place(b.gf, block.join, { made, block.region[1], block.region[2], block.region[3] });
    CHECK(b.gf->n_nodes == n_old + 1);
    const ggml_tensor * order[] = { x, block.input, made, block.region[1], block.region[2], block.region[3], z, after };
    CHECK(b.gf->n_nodes == 8);
    for (int i = 0; i < 8; ++i) {
        CHECK(b.gf->nodes[i] == order[i]);
    }
}

static void test_other_back_end() {
    // a weight of the region in the memory of a GPU
    ggml_backend_device device    = {};
    device.iface.get_type         = [](ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; };
    ggml_backend_buffer_type type = {};
    type.device                   = &device;
    ggml_backend_buffer buffer    = {};
    buffer.buft                   = &type;

    builder       b;
    ggml_tensor * x  = b.input();
    ggml_tensor * z  = ggml_add(b.ctx, b.ffn(0, b.norm(x)), x);
    ggml_tensor * up = z->src[0]->src[1]->src[0]->src[0];
    CHECK(std::string(up->name) == "blk.0.ffn_up.weight");
    up->buffer        = &buffer;
    const auto blocks = b.find(z);
    CHECK(blocks.size() == 1 && !blocks[0].on_cpu);

    device.iface.get_type = [](ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_CPU; };
    CHECK(pyskip_graph_find(b.gf)[0].on_cpu);
}

int main() {
    test_names();
    test_other_back_end();
    test_rows_that_mix();
    test_place();
    test_serial();
    test_attention_that_writes();
    test_attention_of_one_weight();
    test_attention_that_drops_rows();
    test_operands_swapped_bias_and_post_norm();
    test_parallel_attention();
    test_lora_and_experts_join_once();
    test_refused();
    return check_result("test-graph-pass");
}

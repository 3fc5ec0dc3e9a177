#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "profile.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <vector>

namespace {

// native/kernels' own; nullptr if this machine has none.
ggml_backend_buffer_type_t packed_type(ggml_backend_dev_t cpu) {
    const auto get = (ggml_backend_dev_get_extra_bufts_t) ggml_backend_reg_get_proc_address(
        ggml_backend_dev_backend_reg(cpu), "ggml_backend_dev_get_extra_bufts");
    for (ggml_backend_buffer_type_t * buft = get ? get(cpu) : nullptr; buft && *buft; ++buft) {
        if (std::strcmp(ggml_backend_buft_name(*buft), "CPU_PYSKIP") == 0) {
            return *buft;
        }
    }
    return nullptr;
}

// Whether a product with these weights, in such a buffer, has a kernel.
bool is_served(ggml_backend_dev_t cpu, ggml_backend_buffer_type_t buft, ggml_tensor * weights) {
    if (ggml_n_dims(weights) != 2 || !ggml_is_quantized(weights->type)) {
        return false;
    }
    const ggml_init_params params = { 2 * ggml_tensor_overhead(), nullptr, /*.no_alloc =*/true };
    const ggml_context_ptr ctx(ggml_init(params));
    ggml_tensor *          input = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, weights->ne[0], 1);
    const ggml_tensor *    op    = ggml_mul_mat(ctx.get(), weights, input);

    const ggml_backend_buffer_ptr empty(ggml_backend_buft_alloc_buffer(buft, 0));
    weights->buffer    = empty.get();
    const bool is_able = ggml_backend_dev_supports_op(cpu, op);
    weights->buffer    = nullptr;
    return is_able;
}

// Room for those of the tensors that the buffer's kernels serve.
void alloc_packed(ggml_backend_dev_t cpu, ggml_backend_buffer_type_t buft, pyskip_profile & profile) {
    std::vector<ggml_tensor *> served;
    const size_t               alignment = ggml_backend_buft_get_alignment(buft);
    size_t                     size      = 0;
    for (ggml_tensor * t = ggml_get_first_tensor(profile.tensors.get()); t;
         t               = ggml_get_next_tensor(profile.tensors.get(), t)) {
        if (is_served(cpu, buft, t)) {
            served.push_back(t);
            size += GGML_PAD(ggml_backend_buft_get_alloc_size(buft, t), alignment);
        }
    }
    if (served.empty()) {
        return;
    }
    profile.packed.reset(ggml_backend_buft_alloc_buffer(buft, size));
    if (!profile.packed) {
        throw std::bad_alloc();
    }
    ggml_backend_buffer_set_usage(profile.packed.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    ggml_tallocr place = ggml_tallocr_new(profile.packed.get());
    for (ggml_tensor * t : served) {
        ggml_tallocr_alloc(&place, t);
    }
}

} // namespace

void pyskip_profile_alloc(pyskip_profile & profile) {
    ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (ggml_backend_buffer_type_t buft = packed_type(cpu)) {
        alloc_packed(cpu, buft, profile);
    }
    profile.weights.reset(
        ggml_backend_alloc_ctx_tensors_from_buft(profile.tensors.get(), ggml_backend_cpu_buffer_type()));
    if (!profile.weights) {
        throw std::bad_alloc();
    }
    ggml_backend_buffer_set_usage(profile.weights.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
}

int64_t pyskip_profile_row_not_finite(const ggml_tensor * t, const char * data) {
    std::vector<float> row(t->ne[0]);
    for (int64_t i = 0; i < ggml_nrows(t); ++i) {
        const char * from = data + i * t->nb[1];
        if (t->type == GGML_TYPE_F32) {
            std::memcpy(row.data(), from, t->ne[0] * sizeof(float));
        } else {
            ggml_get_type_traits(t->type)->to_float(from, row.data(), t->ne[0]);
        }
        if (!std::all_of(row.begin(), row.end(), [](float v) { return std::isfinite(v); })) {
            return i;
        }
    }
    return -1;
}

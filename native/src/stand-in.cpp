#include "stand-in.h"

#include "ggml.h"
#include "profile.h"

// Keeps hidden values that are all 0 at 0. What a block's post-norm makes of tiny ones does not matter here.
static constexpr float HIDDEN_EPS = 1e-12f;

ggml_tensor * pyskip_stand_in_hidden(ggml_context * ctx, const pyskip_stand_in & own, ggml_tensor * input) {
    ggml_tensor * both   = ggml_mul_mat(ctx, own.gate_up, input);
    ggml_tensor * hidden = own.activation == PYSKIP_ACTIVATION_GELU   ? ggml_geglu(ctx, both)
                           : own.activation == PYSKIP_ACTIVATION_RELU ? ggml_reglu(ctx, both)
                                                                      : ggml_swiglu(ctx, both);
    return own.is_normed ? ggml_rms_norm(ctx, hidden, HIDDEN_EPS) : hidden;
}

ggml_tensor * pyskip_stand_in_build(ggml_context * ctx, const pyskip_stand_in & own, ggml_tensor * input) {
    if (own.gate_up) {
        return ggml_mul_mat(ctx, own.down, pyskip_stand_in_hidden(ctx, own, input));
    }
    if (own.down) {
        return ggml_mul_mat(ctx, own.up, ggml_mul_mat(ctx, own.down, input));
    }
    return own.up ? ggml_mul_mat(ctx, own.up, input) : nullptr;
}

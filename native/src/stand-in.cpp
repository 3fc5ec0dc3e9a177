#include "stand-in.h"

#include "ggml.h"
#include "profile.h"

ggml_tensor * pyskip_stand_in_hidden(ggml_context * ctx, const pyskip_stand_in & own, ggml_tensor * input) {
    return ggml_swiglu(ctx, ggml_mul_mat(ctx, own.gate_up, input));
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

// What upstream's tiled flash attention (ggml_compute_forward_flash_attn_ext_tiled) spends on preparing a tile, with vector
// instructions. The numbers are upstream's own, bit for bit, so these are called under either choice of kernels.

#pragma once

#include "ggml.h"

#include <cstddef>

// out[i] = slope * in[i]; whether any is not minus infinity.
bool pyskip_attention_mask(float * out, const ggml_fp16_t * in, int n, float slope);

// out[i * n_out + row] = element i of a row, for n_row rows of n_embd numbers that lie `stride` bytes apart.
void pyskip_attention_keys(float * out, int n_out, const char * rows, size_t stride, int n_row, int n_embd);

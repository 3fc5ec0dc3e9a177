// Flash attention: what upstream's tiles (ggml_compute_forward_flash_attn_ext_tiled) spend on being prepared, with vector
// instructions, whose numbers are upstream's own, bit for bit, so that they are called under either choice of kernels; and
// attention of few rows in the place of upstream's, under pyskip's own.

#pragma once

#include "ggml.h"
#include "pyskip.h"

#include <cstddef>

struct ggml_compute_params;

// out[i] = slope * in[i]; whether any is not minus infinity. Told to others, this and the next one, for the tests alone.
PYSKIP_API bool pyskip_attention_mask(float * out, const ggml_fp16_t * in, int n, float slope);

// out[i * n_out + row] = element i of a row, for n_row rows of n_embd numbers that lie `stride` bytes apart.
PYSKIP_API void pyskip_attention_keys(float * out, int n_out, const char * rows, size_t stride, int n_row, int n_embd);

// The whole of a GGML_OP_FLASH_ATTN_EXT, called by all threads: rows with caches in half precision of a model whose weights are
// packed. False, and nothing is done, for another one. A row's result is the same bits whatever rows are beside it, however many
// threads there are, and wherever in the cache the keys lie that it sees, as long as their order is the same.
bool pyskip_attention_rows(const struct ggml_compute_params * params, ggml_tensor * op);

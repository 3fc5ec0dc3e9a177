// The buffer type of weights that pyskip's kernels multiply: they are interleaved when the model is loaded. One of
// ggml's extra buffer types of the CPU, asked before upstream's own; ggml-cpu.cpp calls this, and nothing is accepted
// under pyskip_kernels_set(PYSKIP_KERNELS_UPSTREAM), without a kernel for the type, or without AVX2.

#pragma once

#include "ggml-backend.h"

// NULL where the CPU back end is compiled without kernels.
ggml_backend_buffer_type_t pyskip_kernels_buffer_type(void);

// Matrix products with interleaved weights as nodes of a graph: shared out among the threads. Called through the traits
// of buffer.cpp. How many columns there are is read when the node is computed: a gate may have shortened it.

#pragma once

#include "kernels.h"

#ifdef PYSKIP_LANES

struct ggml_compute_params;

namespace pyskip_cpu {

// Bytes of one matrix, interleaved.
size_t matrix_size(const kernel & k, const ggml_tensor * weights);

// Bytes of work space.
size_t work_size(const kernel & k, const ggml_tensor * op);

// Computes a GGML_OP_MUL_MAT or GGML_OP_MUL_MAT_ID; called by every thread.
void forward(const kernel & k, ggml_compute_params * params, ggml_tensor * op);

} // namespace pyskip_cpu

#endif // PYSKIP_LANES

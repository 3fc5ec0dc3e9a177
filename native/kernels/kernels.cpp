#include "kernels.h"

#ifdef PYSKIP_LANES

#include "formats-k.h"
#include "multiply.h"

namespace pyskip_cpu {

const kernel * kernel_of(ggml_type type) {
    switch (type) {
        case GGML_TYPE_Q4_K: return make_kernel<format_q4_K>();
        case GGML_TYPE_Q5_K: return make_kernel<format_q5_K>();
        case GGML_TYPE_Q6_K: return make_kernel<format_q6_K>();
        default:             return nullptr;
    }
}

} // namespace pyskip_cpu

#endif // PYSKIP_LANES

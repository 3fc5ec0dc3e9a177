#include "kernels.h"

#ifdef PYSKIP_LANES

#    include "formats-32.h"
#    include "formats-k.h"
#    include "formats-small-k.h"
#    include "multiply.h"

namespace pyskip_cpu {

const kernel * kernel_of(ggml_type type) {
    switch (type) {
        case GGML_TYPE_Q4_0: return make_kernel<format_q4_0>();
        case GGML_TYPE_Q4_1: return make_kernel<format_q4_1>();
        case GGML_TYPE_Q5_0: return make_kernel<format_q5_0>();
        case GGML_TYPE_Q5_1: return make_kernel<format_q5_1>();
        case GGML_TYPE_Q8_0: return make_kernel<format_q8_0>();
        case GGML_TYPE_IQ4_NL: return make_kernel<format_iq4_nl>();
        case GGML_TYPE_Q2_K: return make_kernel<format_q2_K>();
        case GGML_TYPE_Q3_K: return make_kernel<format_q3_K>();
        case GGML_TYPE_Q4_K: return make_kernel<format_q4_K>();
        case GGML_TYPE_Q5_K: return make_kernel<format_q5_K>();
        case GGML_TYPE_Q6_K: return make_kernel<format_q6_K>();
        case GGML_TYPE_IQ4_XS: return make_kernel<format_iq4_xs>();
        default: return nullptr;
    }
}

} // namespace pyskip_cpu

#endif // PYSKIP_LANES

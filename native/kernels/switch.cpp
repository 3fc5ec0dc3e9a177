// Which kernels the models loaded from now on get. Compiled into ggml-base: libllama and the CPU back end, which may be
// loaded at run time, both link to it.

#include "pyskip.h"

#include <atomic>

static std::atomic<int> kernels{ PYSKIP_KERNELS_FAST };

enum pyskip_status pyskip_kernels_set(enum pyskip_kernels wanted) {
    if (wanted != PYSKIP_KERNELS_FAST && wanted != PYSKIP_KERNELS_UPSTREAM) {
        return PYSKIP_STATUS_INVALID;
    }
    kernels = wanted;
    return PYSKIP_STATUS_OK;
}

enum pyskip_kernels pyskip_kernels_get(void) {
    return (enum pyskip_kernels) kernels.load();
}

// As common.h: the names of upstream's log, silent.

#pragma once

#include "ggml.h"

#define LOG(...)     ((void) 0)
#define LOG_INF(...) ((void) 0)
#define LOG_ERR(...) ((void) 0)

enum { LOG_LEVEL_ERROR, LOG_LEVEL_DEBUG };

inline int common_log_get_verbosity(ggml_log_level) {
    return 0;
}
inline void   common_log_set_verbosity_thold(int) {}
inline void * common_log_main() {
    return nullptr;
}
inline void common_log_flush(void *) {}

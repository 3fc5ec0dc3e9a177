// A check that names what failed, for tests without a framework.

#pragma once

#include <atomic>
#include <cstdio>

inline std::atomic<int> n_failed{ 0 };

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            std::printf("%s:%d: %s is false\n", __FILE__, __LINE__, #condition);                                       \
            n_failed++;                                                                                                \
        }                                                                                                              \
    } while (0)

inline int check_result(const char * name) {
    std::printf("%s: %s\n", name, n_failed == 0 ? "passed" : "FAILED");
    return n_failed == 0 ? 0 : 1;
}

// Activations as the kernels read them: 8-bit numbers with a scale for 256 of them (beside k-quants) or for 32 (beside
// the older types), and the sums that a weight's offset or minimum is multiplied by. Written once for every matrix
// product, by all threads.

#pragma once

#include <cstddef>
#include <cstdint>

namespace pyskip_cpu {

struct activations_256 {
    static constexpr int N = 256;

    float   d;
    int32_t minus_sum; // minus the sum of all numbers
    int16_t sum_16[16];
    int16_t sum_32[8];
    int8_t  q[256];
};

struct activations_32 {
    static constexpr int N = 32;

    float   d;
    float   d_sum; // d times the sum of the numbers
    int32_t minus_sum;
    int8_t  q[32];
};

void quantize(const float * x, activations_256 * block);
void quantize(const float * x, activations_32 * block);

} // namespace pyskip_cpu

// One weight type's kernels, by the type: packing at load, products while a graph runs. Called by buffer.cpp and
// mul-mat.cpp.

#pragma once

#include "lanes.h"

#ifdef PYSKIP_LANES

#    include "ggml.h"

#    include <cstddef>
#    include <cstdint>

namespace pyskip_cpu {

// How many columns and strips one pass computes, by the number of registers.
constexpr int MAX_PACKED  = PYSKIP_LANES == 16 ? 5 : 4; // with weights as they are packed
constexpr int MAX_COLUMNS = PYSKIP_LANES == 16 ? 5 : 3; // with expanded ones, MAX_STRIPS strips at a time
constexpr int MAX_STRIPS  = 2;

// Strips that are expanded together: they fit in the second cache, the columns of a pass in the first.
constexpr int TILE_STRIPS = 128 / PYSKIP_LANES;

// From how many columns on it pays to expand weights.
constexpr int FEW_COLUMNS = 16;

// Columns of a product: where their activations and their results are.
struct columns {
    const char *    activations;
    size_t          activations_size; // of a column
    char *          dst;              // row 0
    size_t          nb1, nb2, nb3;
    int64_t         ne1, ne2;
    const int32_t * experts; // of a product with experts, for each column: which of a token's experts it is, the token
    int64_t         ne11;    // there, columns of a token: 1 or as many as experts

    const void * activations_of(int64_t c) const {
        if (experts) {
            const int32_t i = ne11 == 1 ? 0 : experts[2 * c] % (int32_t) ne11;
            c               = i + experts[2 * c + 1] * ne11;
        }
        return activations + c * activations_size;
    }

    // divides only where it must: this is asked for often
    float * result_of(int64_t c, int64_t row) const {
        const size_t at = experts   ? experts[2 * c] * nb1 + experts[2 * c + 1] * nb2
                          : c < ne1 ? c * nb1
                                    : c % ne1 * nb1 + c / ne1 % ne2 * nb2 + c / (ne1 * ne2) * nb3;
        return (float *) (dst + at) + row;
    }
};

struct kernel {
    int64_t n_weights;        // of a block
    size_t  source_size;      // of a block of one row, in the file
    size_t  block_size;       // of a block of L rows
    size_t  activations_size; // of a block

    void (*pack)(void * out, const void * const * in); // a block of L rows
    void (*quantize)(const float * x, void * block);

    // Strips [first, first + n_strip) of a matrix of n_row rows, all columns of [c0, c1). No strip has more rows than the
    // matrix; the last may have fewer than L.
    void (*multiply)(const char * matrix, int64_t n_block, int64_t first, int64_t n_strip, int64_t n_row,
                     const columns & columns, int64_t c0, int64_t c1);
};

// NULL where there is none for the type.
const kernel * kernel_of(ggml_type type);

} // namespace pyskip_cpu

#endif // PYSKIP_LANES

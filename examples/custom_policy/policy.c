/* A policy of one's own: skip where the last block hardly turned the stream, the more readily the deeper the layer, never
 * two blocks in a row, and no block of a prompt.
 *
 *     cc -shared -fPIC -O2 -I "$(python -c 'import pyskip; print(pyskip.get_include())')" policy.c -o policy.so
 */

#include "pyskip.h"

struct settings {
    float   first; /* cos(x, z) that skips in the first layer, */
    float   last;  /* and in the last one */
    int32_t warmup; /* generated tokens that run dense */
};

/* Asked before each block. pyskip.h says what is in d; data is what Python gave. True skips the block. */
bool decide(const struct pyskip_decision * d, void * data) {
    const struct settings * s = data;
    if (d->index < s->warmup || d->il_sim != d->il - 1) {
        return false; /* a prompt's token has index -1; or the layer before was skipped */
    }
    const float depth = (float) d->il / (float) (d->n_layer - 1);
    return d->sim >= s->first + (s->last - s->first) * depth; /* a NaN compares false: run */
}

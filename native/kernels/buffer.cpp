#include "buffer.h"

#include "kernels.h"

#ifndef PYSKIP_LANES

ggml_backend_buffer_type_t pyskip_kernels_buffer_type(void) {
    return nullptr;
}

#else

#    include "ggml-backend-impl.h"
#    include "ggml-cpu.h"
#    include "ggml-impl.h"
#    include "mul-mat.h"
#    include "pyskip.h"
#    include "traits.h"

#    include <algorithm>
#    include <memory>
#    include <mutex>
#    include <thread>
#    include <vector>

#    if defined(__linux__)
#        include <sys/mman.h>

#        include <cinttypes>
#        include <cstdio>
#    endif

using namespace pyskip_cpu;

namespace {

class traits : public ggml::cpu::tensor_traits {
public:
    explicit traits(const kernel & k) : k(k) {}

    bool work_size(int, const ggml_tensor * op, size_t & size) override {
        size = pyskip_cpu::work_size(k, op);
        return true;
    }

    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        forward(k, params, op);
        return true;
    }

    const kernel & k;
};

traits * traits_of(ggml_type type) {
    static const std::vector<std::unique_ptr<traits>> all = [] {
        std::vector<std::unique_ptr<traits>> all(GGML_TYPE_COUNT);
        for (int type = 0; type < GGML_TYPE_COUNT; ++type) {
            if (const kernel * k = kernel_of((ggml_type) type)) {
                all[type] = std::make_unique<traits>(*k);
            }
        }
        return all;
    }();
    return all[type].get();
}

// A matrix's rows, as many as ggml_tensor::ne[1], filled up to whole strips.
size_t alloc_size(ggml_backend_buffer_type_t, const ggml_tensor * tensor) {
    const traits * t = traits_of(tensor->type);
    return t ? matrix_size(t->k, tensor) * tensor->ne[2] * tensor->ne[3] : ggml_nbytes(tensor);
}

void pack_strips(const kernel & k, const ggml_tensor * tensor, const char * data, int64_t begin, int64_t end) {
    const int64_t n_strip  = (tensor->ne[1] + L - 1) / L;
    const int64_t n_block  = tensor->ne[0] / k.n_weights;
    const size_t  row_size = n_block * k.source_size;

    const std::vector<char> nothing(k.source_size); // beyond the last row: zeros
    for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i % n_strip * L;
        const char *  from  = data + (i / n_strip * tensor->ne[1] + first) * row_size;
        char *        to    = (char *) tensor->data + i * n_block * k.block_size;
        for (int64_t b = 0; b < n_block; ++b) {
            const void * in[L];
            for (int row = 0; row < L; ++row) {
                in[row] = first + row < tensor->ne[1] ? from + row * row_size + b * k.source_size : nothing.data();
            }
            k.pack(to + b * k.block_size, in);
        }
    }
}

// Pages of a mapped file, read for the last time when weights were packed: they need not count as this process's memory any
// more. Given back a megabyte at a time, since finding the mapping takes longer than packing a small matrix.
class file_pages {
public:
    void read(const void * data, size_t size) {
        const uintptr_t                   first = (uintptr_t) data;
        const uintptr_t                   last  = first + size;
        const std::lock_guard<std::mutex> lock(mutex);
        if (first < end || first > end + MOST) { // not what follows in the file
            give_back();
            begin = first;
        }
        end = last;
        if (end - begin >= MOST) {
            give_back();
            begin = end;
        }
    }

private:
    static constexpr uintptr_t PAGE  = 4096;
    static constexpr uintptr_t LEAST = 16 * PAGE; // not worth looking for
    static constexpr uintptr_t MOST  = 1 << 20;

    std::mutex mutex;
    uintptr_t  begin = 0;
    uintptr_t  end   = 0;

    // Only of read-only mappings of files is nothing lost by that.
    void give_back() const {
#    if defined(__linux__)
        FILE * maps = end - begin >= LEAST ? fopen("/proc/self/maps", "r") : nullptr;
        if (maps == nullptr) {
            return;
        }
        char line[512];
        while (fgets(line, sizeof(line), maps)) {
            uintptr_t from;
            uintptr_t to;
            char      permissions[8];
            uint64_t  inode;
            if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %7s %*s %*s %" SCNu64, &from, &to, permissions, &inode) == 4 &&
                from <= begin && end <= to) {
                const uintptr_t first = (begin + PAGE - 1) / PAGE * PAGE;
                const uintptr_t last  = end / PAGE * PAGE;
                if (permissions[1] == '-' && inode != 0 && first < last) {
                    madvise((void *) first, last - first, MADV_DONTNEED);
                }
                break;
            }
        }
        fclose(maps);
#    endif
    }
};

ggml_status init_tensor(ggml_backend_buffer_t, ggml_tensor * tensor) {
    tensor->extra = traits_of(tensor->type);
    return GGML_STATUS_SUCCESS;
}

void set_tensor(ggml_backend_buffer_t, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    GGML_ASSERT(offset == 0 && size == ggml_nbytes(tensor) && "interleaved weights are set whole");
    const kernel & k       = ((const traits *) tensor->extra)->k;
    const int64_t  n_strip = (tensor->ne[1] + L - 1) / L * tensor->ne[2] * tensor->ne[3];

    // small ones are done before a thread has started
    const bool    is_small = size < 1 << 18;
    const int64_t n_thread = is_small ? 1 : std::clamp<int64_t>(std::thread::hardware_concurrency(), 1, 16);

    std::vector<std::thread> threads;
    const auto               pack_share = [&](int64_t t) {
        pack_strips(k, tensor, (const char *) data, n_strip * t / n_thread, n_strip * (t + 1) / n_thread);
    };
    for (int64_t t = 1; t < n_thread; ++t) {
        threads.emplace_back([&pack_share, t] { pack_share(t); });
    }
    pack_share(0);
    for (std::thread & thread : threads) {
        thread.join();
    }
    static file_pages pages;
    pages.read(data, size);
}

const char * get_name(ggml_backend_buffer_type_t) {
    return "CPU_PYSKIP";
}

ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t buft, size_t size) {
    ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), size);
    if (buffer == nullptr) {
        return nullptr;
    }
#    if defined(__linux__) && defined(MADV_HUGEPAGE)
    // every token reads all of it: pages of 2 MiB spare the processor most look-ups of addresses
    constexpr uintptr_t page  = 2 << 20;
    const uintptr_t     base  = (uintptr_t) ggml_backend_buffer_get_base(buffer);
    const uintptr_t     begin = (base + page - 1) / page * page;
    const uintptr_t     end   = (base + size) / page * page;
    if (begin < end) {
        madvise((void *) begin, end - begin, MADV_HUGEPAGE);
    }
#    endif
    buffer->buft              = buft;
    buffer->iface.init_tensor = init_tensor;
    buffer->iface.set_tensor  = set_tensor;
    buffer->iface.get_tensor  = nullptr;
    buffer->iface.cpy_tensor  = nullptr;
    return buffer;
}

size_t get_alignment(ggml_backend_buffer_type_t) {
    return 64;
}

bool is_product(const ggml_tensor * op) {
    return (op->op == GGML_OP_MUL_MAT && op->src[0]->ne[2] == 1 && op->src[0]->ne[3] == 1) ||
           (op->op == GGML_OP_MUL_MAT_ID && op->src[0]->ne[3] == 1);
}

class extra_buffer_type : public ggml::cpu::extra_buffer_type {
public:
    // Asked for a weight before it is loaded, when it has no data yet, and for every node of a graph.
    bool supports_op(ggml_backend_dev_t, const ggml_tensor * op) override {
        const ggml_tensor * weights = op->src[0];
        const ggml_tensor * src1    = op->src[1];
        if (!is_product(op) || weights->buffer == nullptr || weights->buffer->buft != pyskip_kernels_buffer_type()) {
            return false;
        }
        if (weights->data == nullptr && pyskip_kernels_get() != PYSKIP_KERNELS_FAST) {
            return false;
        }
        if (src1->buffer && !ggml_backend_buft_is_host(src1->buffer->buft)) {
            return false;
        }
        return src1->type == GGML_TYPE_F32 && traits_of(weights->type) != nullptr;
    }

    ggml::cpu::tensor_traits * get_tensor_traits(const ggml_tensor * op) override {
        if (op->op != GGML_OP_MUL_MAT && op->op != GGML_OP_MUL_MAT_ID) {
            return nullptr;
        }
        const ggml_tensor * weights = op->src[0];
        if (weights->buffer == nullptr || weights->buffer->buft != pyskip_kernels_buffer_type()) {
            return nullptr;
        }
        return (traits *) weights->extra;
    }
};

} // namespace

ggml_backend_buffer_type_t pyskip_kernels_buffer_type(void) {
    static extra_buffer_type        context;
    static ggml_backend_buffer_type type = {
        /* .iface   = */ {
            /* .get_name       = */ get_name,
            /* .alloc_buffer   = */ alloc_buffer,
            /* .get_alignment  = */ get_alignment,
            /* .get_max_size   = */ nullptr, // SIZE_MAX
            /* .get_alloc_size = */ alloc_size,
            /* .is_host        = */ nullptr,
        },
        /* .device  = */ ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0),
        /* .context = */ (ggml::cpu::extra_buffer_type *) &context,
    };
    return &type;
}

#endif // PYSKIP_LANES

// libFuzzer on what reads a GGUF file before llama.cpp does: the profile reader (profile.cpp) and the inspection of a
// model (gguf-inspect.cpp). The mutator knows GGUF's layout: it changes numbers and texts where they lie.

#include "ggml.h"
#include "gguf-inspect.h"
#include "llama.h"
#include "profile.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <random>
#include <string>
#include <vector>

extern "C" size_t LLVMFuzzerMutate(uint8_t * data, size_t size, size_t max_size);

// In place of llama.cpp's, which is not linked: an input is one file, whose name is never that of a piece of a model.
int32_t llama_split_prefix(char *, size_t, const char *, int32_t, int32_t) {
    return 0;
}

int32_t llama_split_path(char *, size_t, const char *, int32_t, int32_t) {
    return 0;
}

namespace {

struct span {
    size_t at;
    size_t size;
};

// The numbers and the texts of a file, as far as it is sound.
class layout {
public:
    layout(const uint8_t * data, size_t size) : data(data), size(size) {
        at = 4;
        number(4);
        const uint64_t n_info = number(8);
        const uint64_t n_kv   = number(8);
        for (uint64_t i = 0; i < n_kv && sound; ++i) {
            text();
            value((uint32_t) number(4));
        }
        for (uint64_t i = 0; i < n_info && sound; ++i) {
            text();
            for (uint64_t n_dims = number(4), j = 0; j < n_dims && sound; ++j) {
                number(8);
            }
            number(4);
            number(8);
        }
    }

    std::vector<span> numbers;
    std::vector<span> texts; // without the length, which is the 8 bytes before

private:
    uint64_t number(size_t n) {
        uint64_t value = 0;
        if (!sound || size < n || at > size - n) {
            sound = false;
            return 0;
        }
        std::memcpy(&value, data + at, n);
        numbers.push_back({ at, n });
        at += n;
        return value;
    }

    void text() {
        const uint64_t n = number(8);
        if (!sound || n > size - at) {
            sound = false;
            return;
        }
        texts.push_back({ at, (size_t) n });
        at += n;
    }

    void value(uint32_t type) {
        static const size_t sizes[] = { 1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8 }; // enum gguf_type
        uint64_t            n       = 1;
        if (type == 9) {
            type = (uint32_t) number(4);
            n    = number(8);
        }
        for (uint64_t i = 0; i < n && sound; ++i) {
            if (type == 8) {
                text();
            } else if (type < 13 && sizes[type] > 0) {
                number(sizes[type]);
            } else {
                sound = false;
            }
        }
    }

    const uint8_t * data;
    size_t          size;
    size_t          at    = 0;
    bool            sound = true;
};

size_t mutate_number(uint8_t * data, size_t size, const span & number, std::mt19937 & rng) {
    static const uint64_t edges[] = { 0,          1,          2,          3,          8,
                                      9,          31,         32,         33,         255,
                                      4096,       65535,      0x7fffffff, 0x80000000, 0xffffffff,
                                      1ull << 40, 1ull << 62, INT64_MAX,  1ull << 63, UINT64_MAX - 31,
                                      UINT64_MAX };
    if (rng() % 2) {
        const uint64_t edge = edges[rng() % std::size(edges)];
        std::memcpy(data + number.at, &edge, number.size);
    } else {
        LLVMFuzzerMutate(data + number.at, number.size, number.size);
    }
    return size;
}

size_t mutate_text(uint8_t * data, size_t size, size_t max_size, const span & text) {
    std::vector<uint8_t> changed(data + text.at, data + text.at + text.size);
    const size_t         room = std::min<size_t>(text.size + 64, text.size + (max_size - size));
    changed.resize(room + 1);
    const uint64_t n    = LLVMFuzzerMutate(changed.data(), text.size, room);
    const size_t   tail = text.at + text.size;
    std::memmove(data + text.at + n, data + tail, size - tail);
    std::memcpy(data + text.at, changed.data(), n);
    std::memcpy(data + text.at - 8, &n, 8);
    return size - text.size + n;
}

} // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t * data, size_t size, size_t max_size, unsigned int seed) {
    std::mt19937 rng(seed);
    const layout found(data, size);
    switch (rng() % 8) {
        case 0: return LLVMFuzzerMutate(data, size, max_size);
        case 1:
        case 2:
            if (!found.texts.empty() && size <= max_size) {
                return mutate_text(data, size, max_size, found.texts[rng() % found.texts.size()]);
            }
            [[fallthrough]];
        default:
            return found.numbers.empty() ? LLVMFuzzerMutate(data, size, max_size)
                                         : mutate_number(data, size, found.numbers[rng() % found.numbers.size()], rng);
    }
}

extern "C" int LLVMFuzzerInitialize(int *, char ***) {
    ggml_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    static const int         fd   = memfd_create("fuzz", 0);
    static const std::string path = "/proc/self/fd/" + std::to_string(fd);
    if (ftruncate(fd, 0) != 0 || pwrite(fd, data, size, 0) != (ssize_t) size) {
        std::perror("fuzz-gguf");
        std::exit(1);
    }
    std::string error;
    try {
        pyskip_profile profile;
        pyskip_profile_read(path.c_str(), profile, error);
        pyskip_gguf_info info;
        int64_t          bytes[8];
        pyskip_gguf_read(path.c_str(), info, error);
        pyskip_gguf_read_ffn(path.c_str(), bytes, std::size(bytes), error);
    } catch (const std::bad_alloc &) { // api.cpp turns it into a status
    }
    return 0;
}

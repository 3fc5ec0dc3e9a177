// Which tokens of a sequence are generated, by the caller's word. Positions decide, never batches: so a mark must move
// with llama.cpp's own operations on sequences, which the hooks report (hooks.cpp). No ggml or llama.cpp types.

#pragma once

#include <cstdint>
#include <map>

class pyskip_sequences {
public:
    // Positions >= pos are generated; pos < 0 takes the mark back. seq_id < 0: every sequence, also those to come.
    void set_from(int32_t seq_id, int32_t pos);

    // 0, 1, ... among the generated tokens of the sequence; -1: prompt.
    int32_t index(int32_t seq_id, int32_t pos) const;

    // What llama_memory_* does to the positions; p0 < 0 means from 0, p1 < 0 to the end.
    void clear();
    void copy(int32_t seq_id_src, int32_t seq_id_dst);
    void keep(int32_t seq_id);
    void add(int32_t seq_id, int32_t p0, int32_t p1, int32_t delta);
    void div(int32_t seq_id, int32_t p0, int32_t p1, int32_t d);

private:
    int32_t from(int32_t seq_id) const;

    std::map<int32_t, int32_t> marks;     // seq_id -> first generated position, -1: none
    int32_t                    other = -1; // of the sequences without an entry
};

#include "sequences.h"

#include <algorithm>

static bool covers(int32_t p0, int32_t p1, int32_t pos) {
    return pos >= 0 && pos >= p0 && (p1 < 0 || pos <= p1);
}

void pyskip_sequences::set_from(int32_t seq_id, int32_t pos) {
    pos = std::max(pos, -1);
    if (seq_id < 0) {
        marks.clear();
        other = pos;
    } else {
        marks[seq_id] = pos;
    }
}

int32_t pyskip_sequences::from(int32_t seq_id) const {
    const auto it = marks.find(seq_id);
    return it == marks.end() ? other : it->second;
}

int32_t pyskip_sequences::index(int32_t seq_id, int32_t pos) const {
    const int32_t first = from(seq_id);
    return first < 0 || pos < first ? -1 : pos - first;
}

void pyskip_sequences::clear() {
    marks.clear();
    other = -1;
}

void pyskip_sequences::copy(int32_t seq_id_src, int32_t seq_id_dst) {
    marks[seq_id_dst] = from(seq_id_src);
}

void pyskip_sequences::keep(int32_t seq_id) {
    const int32_t first = from(seq_id);
    clear();
    marks[seq_id] = first;
}

void pyskip_sequences::add(int32_t seq_id, int32_t p0, int32_t p1, int32_t delta) {
    const int32_t first = from(seq_id);
    if (covers(p0, p1, first)) {
        marks[seq_id] = std::max(first + delta, 0);
    }
}

void pyskip_sequences::div(int32_t seq_id, int32_t p0, int32_t p1, int32_t d) {
    const int32_t first = from(seq_id);
    if (d > 0 && covers(p0, p1, first)) {
        marks[seq_id] = first / d;
    }
}

// Which slot a request gets, by upstream's get_available_slot(). Where each slot has a cache of its own, llama.cpp decodes those
// with neighbouring numbers in one batch, and others one after the other.

#pragma once

#include <vector>

// Runs of slots that are busy, with this one.
template <typename slot_type> size_t pyskip_slot_runs(const std::vector<slot_type> & slots, const slot_type * taken) {
    size_t n_runs = 0;
    bool   was    = false;
    for (const slot_type & slot : slots) {
        const bool is_busy = slot.is_processing() || &slot == taken;
        n_runs += is_busy && !was;
        was = is_busy;
    }
    return n_runs;
}

// The free slot that leaves the fewest runs, of those the one that was used the longest ago. oldest: the one that was of all,
// or none if none is free.
template <typename slot_type> slot_type * pyskip_slot_beside(std::vector<slot_type> & slots, slot_type * oldest) {
    slot_type * best   = oldest;
    size_t      fewest = oldest ? pyskip_slot_runs(slots, oldest) : 0;
    for (slot_type & slot : slots) {
        if (!oldest || slot.is_processing()) {
            continue;
        }
        const size_t n_runs = pyskip_slot_runs(slots, &slot);
        if (n_runs < fewest || (n_runs == fewest && slot.t_last_used < best->t_last_used)) {
            best   = &slot;
            fewest = n_runs;
        }
    }
    return best;
}

// The order in which slots have their prompts computed, by upstream's update_slots(). Not that of their answers: each slot that
// generates is in every batch.

#pragma once

#include <algorithm>
#include <utility>
#include <vector>

// Those with the least left first, so that who asks little does not wait for who asks much. Each fourth time as upstream has
// it, so that who asks much does not wait for ever.
template <typename slot_type> std::vector<slot_type *> pyskip_prompts_in_turn(std::vector<slot_type> & slots) {
    static unsigned n_turns = 0; // of the one thread that decodes

    std::vector<std::pair<int, slot_type *>> left;
    for (slot_type & slot : slots) {
        left.emplace_back(slot.task ? slot.task->n_tokens() - slot.prompt.n_tokens() : 0, &slot);
    }
    if (++n_turns % 4 != 0) {
        std::stable_sort(left.begin(), left.end(), [](const auto & a, const auto & b) { return a.first < b.first; });
    }
    std::vector<slot_type *> order;
    for (const auto & one : left) {
        order.push_back(one.second);
    }
    return order;
}

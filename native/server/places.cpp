#include "places.h"

#include <algorithm>

pyskip_places & pyskip_server_places() {
    static pyskip_places places;
    return places;
}

void pyskip_places::open(int32_t n_slots, int32_t n_queue) {
    slots = n_slots;
    queue = n_queue;
}

std::shared_ptr<void> pyskip_places::take(int32_t n, const std::function<bool()> & has_gone) {
    const std::lock_guard<std::mutex> lock(mutex);

    int32_t n_left = slots + queue - taken;
    for (auto it = holders.begin(); n_left < n && it != holders.end(); ++it) {
        n_left += it->has_gone() ? it->n : 0;
    }
    if (n_left < n) {
        return nullptr;
    }
    taken += n;
    const auto own = holders.insert(holders.end(), { n, has_gone });
    return { this, [this, own](void *) {
                const std::lock_guard<std::mutex> given_back(mutex);
                taken -= own->n;
                holders.erase(own);
            } };
}

int32_t pyskip_places::n_waiting() const {
    return std::max(taken - slots, 0);
}

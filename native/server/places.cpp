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

std::shared_ptr<void> pyskip_places::take(int32_t n) {
    if ((taken += n) > slots + queue) {
        taken -= n;
        return nullptr;
    }
    return { this, [this, n](void *) { taken -= n; } };
}

int32_t pyskip_places::n_waiting() const {
    return std::max(taken - slots, 0);
}

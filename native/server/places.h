// Requests that are there: each holds a place from when its body was read until it was answered. As many as there are slots
// run, the others wait; there are only so many places.

#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>

class pyskip_places {
public:
    // Of a model with n_slots, and n_queue more.
    void open(int32_t n_slots, int32_t n_queue);

    // n of them, for a client that may go; none if there are not as many, besides those of clients that have gone and whose
    // requests are about to end. They are given back when the last copy goes.
    std::shared_ptr<void> take(int32_t n, const std::function<bool()> & has_gone);

    int32_t n_all() const { return slots + queue; }
    int32_t n_slots() const { return slots; }

    int32_t n_taken() const { return taken; }
    int32_t n_waiting() const;

private:
    int32_t              slots = 1;
    int32_t              queue = 0;
    std::atomic<int32_t> taken{ 0 };

    struct holder {
        int32_t               n;
        std::function<bool()> has_gone;
    };

    std::mutex        mutex; // of the list; taken is its sum
    std::list<holder> holders;
};

pyskip_places & pyskip_server_places();

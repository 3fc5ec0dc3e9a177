#include "deadline.h"

#include "settings.h"

#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#if defined(_WIN32)
#    include <winsock2.h>
#    define SHUT_RD SD_RECEIVE
#else
#    include <sys/socket.h>
#endif

namespace {

using steady = std::chrono::steady_clock;

// Watches the sockets of all requests that are being read. Never ends: threads may read until the process does.
struct watch {
    std::mutex                        mutex;
    std::condition_variable           changed;
    std::map<int, steady::time_point> due; // socket -> when

    void run() {
        std::unique_lock<std::mutex> lock(mutex);
        for (;;) {
            changed.wait_for(lock, std::chrono::milliseconds(250));
            const auto now = steady::now();
            for (auto it = due.begin(); it != due.end();) {
                if (it->second <= now) {
                    shutdown(it->first, SHUT_RD); // whoever reads it hears that it has ended
                    it = due.erase(it);
                } else {
                    ++it;
                }
            }
        }
    }

    static watch & get() {
        static watch * own = [] {
            auto * made = new watch;
            std::thread([made] { made->run(); }).detach();
            return made;
        }();
        return *own;
    }
};

thread_local int  reading   = -1;
thread_local bool is_missed = false;

void forget() {
    if (reading >= 0) {
        watch &                           w = watch::get();
        const std::lock_guard<std::mutex> lock(w.mutex);
        is_missed = w.due.erase(reading) == 0;
        reading   = -1;
    }
}

} // namespace

pyskip_deadline::pyskip_deadline(int s) : socket(s) {
    watch &                           w = watch::get();
    const std::lock_guard<std::mutex> lock(w.mutex);
    w.due[socket] = steady::now() + std::chrono::seconds(pyskip_server_settings().timeout);
    reading       = socket;
    is_missed     = false;
}

pyskip_deadline::~pyskip_deadline() {
    forget();
}

void pyskip_deadline_met() {
    forget();
}

bool pyskip_deadline_missed() {
    forget();
    return is_missed;
}

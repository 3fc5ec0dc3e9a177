#include "shutdown.h"

#include "places.h"
#include "settings.h"

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <mutex>
#include <thread>

void llama_server_terminate(); // upstream's server.cpp

namespace {

std::atomic<int> n_signals{ 0 };

// Not in the signal handler, which may do next to nothing.
void wait_for_signal() {
    const auto pause = [] { std::this_thread::sleep_for(std::chrono::milliseconds(20)); };
    while (n_signals == 0) {
        pause();
    }
    const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(pyskip_server_settings().grace);
    while (n_signals == 1 && pyskip_server_places().n_taken() > 0 && std::chrono::steady_clock::now() < end) {
        pause();
    }
    if (n_signals > 1) {
        std::_Exit(130);
    }
    llama_server_terminate();
}

} // namespace

void pyskip_shutdown_watch() {
    static std::once_flag once;
    std::call_once(once, [] { std::thread(wait_for_signal).detach(); });
}

bool pyskip_shutdown_signal(int) {
    if (++n_signals > 2) {
        std::_Exit(130);
    }
    return true;
}

bool pyskip_is_shutting_down() {
    return n_signals > 0;
}

int pyskip_shutdown_status(int status) {
    return n_signals > 0 ? 0 : status;
}

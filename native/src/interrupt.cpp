// Ctrl-C during llama_decode(): called by pyskip.Llama around each decode in the main thread. No policy has a part in it.

#include "interrupt.h"

#include "access.h"
#include "pyskip.h"

#include <atomic>
#include <csignal>

namespace {

std::atomic<const void *> sigint_state{ nullptr }; // the state of the context that decodes
std::atomic<bool>         sigint_heard{ false };

struct sigaction sigint_before{};

void on_interrupt(int) {
    sigint_heard = true;
}

} // namespace

bool pyskip_interrupted(const pyskip_state * state) {
    return sigint_heard.load(std::memory_order_relaxed) && sigint_state.load() == state;
}

void pyskip_watch_interrupt(llama_context * ctx, bool begin) {
    const pyskip_state * state = pyskip_state_get(ctx);
    if (!begin) {
        if (sigint_state.load() == state) {
            sigaction(SIGINT, &sigint_before, nullptr);
            sigint_state = nullptr;
            if (sigint_heard.exchange(false)) {
                raise(SIGINT); // Python's turn, now that no callback of llama.cpp's swallows its exception
            }
        }
        return;
    }
    if (sigint_state.load()) {
        return;
    }
    sigint_heard = false;
    sigint_state = state;
    struct sigaction action{};
    action.sa_handler = on_interrupt;
    action.sa_flags   = SA_RESTART;
    sigaction(SIGINT, &action, &sigint_before);
}

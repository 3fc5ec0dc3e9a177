// Ctrl-C during llama_decode(): called by pyskip.Llama around each decode in the main thread. No policy has a part in it.

#include "interrupt.h"

#include "access.h"
#include "pyskip.h"

#include <atomic>
#include <csignal>

#if defined(_WIN32)
#    define WIN32_LEAN_AND_MEAN
#    include <windows.h>
#endif

namespace {

std::atomic<const void *> sigint_state{ nullptr }; // the state of the context that decodes
std::atomic<bool>         sigint_heard{ false };

#if defined(_WIN32)

// In a thread of the console's. What was asked to be told last is told first, and alone if it returns TRUE.
BOOL WINAPI on_interrupt(DWORD event) {
    if (event != CTRL_C_EVENT) {
        return FALSE;
    }
    sigint_heard = true;
    return TRUE;
}

void begin_hearing() {
    SetConsoleCtrlHandler(on_interrupt, TRUE);
}

void end_hearing() {
    SetConsoleCtrlHandler(on_interrupt, FALSE);
}

#else

struct sigaction sigint_before{};

void on_interrupt(int) {
    sigint_heard = true;
}

void begin_hearing() {
    struct sigaction action{};
    action.sa_handler = on_interrupt;
    action.sa_flags   = SA_RESTART;
    sigaction(SIGINT, &action, &sigint_before);
}

void end_hearing() {
    sigaction(SIGINT, &sigint_before, nullptr);
}

#endif

} // namespace

bool pyskip_interrupted(const pyskip_state * state) {
    return sigint_heard.load(std::memory_order_relaxed) && sigint_state.load() == state;
}

bool pyskip_watch_interrupt(llama_context * ctx, bool begin) {
    const pyskip_state * state = pyskip_state_get(ctx);
    if (!begin) {
        if (sigint_state.load() != state) {
            return false;
        }
        end_hearing();
        sigint_state = nullptr;
        return sigint_heard.exchange(false);
    }
    if (!sigint_state.load()) {
        sigint_heard = false;
        sigint_state = state;
        begin_hearing();
    }
    return false;
}

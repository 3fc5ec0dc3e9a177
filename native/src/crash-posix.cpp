// Crashes are signals.

#include "crash-system.h"

#include <csignal>
#include <cstring>
#include <memory>

#include <unistd.h>

namespace {

// A stack for on_signal() in a thread whose own ran over.
struct crash_stack {
    static constexpr size_t SIZE = 64 * 1024;

    crash_stack() : memory(new char[SIZE]) {
        stack_t stack{};
        stack.ss_sp   = memory.get();
        stack.ss_size = SIZE;
        sigaltstack(&stack, &before);
    }

    ~crash_stack() { sigaltstack(&before, nullptr); }

    std::unique_ptr<char[]> memory;
    stack_t                 before{};
};

void on_signal(int signal) {
    switch (signal) {
        case SIGABRT: pyskip_crashed(pyskip_crash::stopped, "SIGABRT");
        case SIGBUS: pyskip_crashed(pyskip_crash::unreadable, "SIGBUS");
        case SIGFPE: pyskip_crashed(pyskip_crash::crashed, "SIGFPE");
        case SIGILL: pyskip_crashed(pyskip_crash::crashed, "SIGILL");
        default: pyskip_crashed(pyskip_crash::crashed, "SIGSEGV");
    }
}

} // namespace

void pyskip_crash_listen() {
    struct sigaction action{};
    action.sa_handler = on_signal;
    action.sa_flags   = SA_ONSTACK;
    for (const int signal : { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT }) {
        sigaction(signal, &action, nullptr);
    }
}

void pyskip_crash_make_room() {
    static thread_local const crash_stack own;
    (void) own;
}

void pyskip_crash_write(int32_t to, const char * text) {
    (void) !write(to, text, std::strlen(text));
}

void pyskip_crash_exit() {
    _exit(1);
}

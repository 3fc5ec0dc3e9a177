// When llama.cpp gives up: GGML_ASSERT and GGML_ABORT as exceptions while a model is loaded, and for command lines one
// line instead of a crash. Called by pyskip.Llama, by api.cpp and by the command line; no policy has a part in it.

#include "crash.h"

#include "ggml.h"
#include "llama.h"
#include "pyskip.h"

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>

#include <unistd.h>

namespace {

thread_local bool catches = false;

std::mutex            mutex;
int                   n_catching = 0; // threads
ggml_abort_callback_t before     = nullptr;

char aborted_with[512]; // for the line of a process that ends on a crash
int  crash_fd = -1;

// Called by ggml_abort(), whose frames and those of its callers are unwound: compilers emit the tables for C too.
void on_abort(const char * message) {
    if (catches) {
        throw std::runtime_error(message);
    }
    std::snprintf(aborted_with, sizeof(aborted_with), "%s", message);
    if (crash_fd < 0) {
        std::fprintf(stderr, "%s\n", message);
    }
}

// Called when nobody catches an exception; abort() goes on to on_crash().
void on_terminate() {
    try {
        if (const std::exception_ptr thrown = std::current_exception()) {
            std::rethrow_exception(thrown);
        }
    } catch (const std::exception & e) {
        std::snprintf(aborted_with, sizeof(aborted_with), "%s", e.what());
    } catch (...) {
    }
    std::abort();
}

// A stack for on_crash() in a thread whose own ran over.
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

// Only what a signal handler may call.
void on_crash(int signal) {
    const auto say = [](const char * text) { (void) !write(crash_fd, text, std::strlen(text)); };
    switch (signal) {
        case SIGABRT:
            say("pyskip: llama.cpp stopped (");
            say(aborted_with[0] ? aborted_with : "SIGABRT");
            say("): the model file is damaged, memory is out, or this is a bug: PYSKIP_DEBUG=1 leaves a core dump\n");
            break;
        case SIGBUS:
            say("pyskip: a part of the model file can no longer be read (SIGBUS): it was cut off while it was in use, "
                "or its "
                "disk failed: download it again\n");
            break;
        default:
            say("pyskip: llama.cpp crashed (");
            say(signal == SIGFPE ? "SIGFPE" : signal == SIGILL ? "SIGILL" : "SIGSEGV");
            say("): the model file is damaged, a text is nested too deep, or this is a bug: PYSKIP_DEBUG=1 leaves a "
                "core dump\n");
    }
    _exit(1);
}

} // namespace

void pyskip_catch_aborts(bool begin) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (begin == catches) {
        return;
    }
    catches = begin;
    n_catching += begin ? 1 : -1;
    if (begin && n_catching == 1) {
        before = ggml_set_abort_callback(on_abort);
    } else if (n_catching == 0) {
        ggml_set_abort_callback(before);
    }
}

void pyskip_log_drop(void) {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
}

void pyskip_exit_on_crash(int32_t fd) {
    crash_fd = fd;
    ggml_set_abort_callback(on_abort);
    std::set_terminate(on_terminate);
    struct sigaction action{};
    action.sa_handler = on_crash;
    action.sa_flags   = SA_ONSTACK;
    for (const int signal : { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT }) {
        sigaction(signal, &action, nullptr);
    }
    pyskip_crash_stack();
}

void pyskip_crash_stack() {
    if (crash_fd >= 0) {
        static thread_local const crash_stack own;
        (void) own;
    }
}

pyskip_aborts_caught::pyskip_aborts_caught() : before(catches) {
    pyskip_catch_aborts(true);
}

pyskip_aborts_caught::~pyskip_aborts_caught() {
    pyskip_catch_aborts(before);
}

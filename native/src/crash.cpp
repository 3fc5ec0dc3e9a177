// When llama.cpp gives up: GGML_ASSERT and GGML_ABORT as exceptions while a model is loaded, and for command lines one
// line instead of a crash. Called by pyskip.Llama, by api.cpp and by the command line; no policy has a part in it.

#include "crash.h"

#include "crash-system.h"
#include "ggml.h"
#include "llama.h"
#include "pyskip.h"

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <stdexcept>

namespace {

thread_local bool catches = false;

std::mutex            mutex;
int                   n_catching = 0; // threads
ggml_abort_callback_t before     = nullptr;

char    aborted_with[512]; // for the line of a process that ends on a crash
int32_t crash_to = -1;

// Called by ggml_abort(), whose frames and those of its callers are unwound: compilers emit the tables for C too.
void on_abort(const char * message) {
    if (catches) {
        throw std::runtime_error(message);
    }
    std::snprintf(aborted_with, sizeof(aborted_with), "%s", message);
    if (crash_to < 0) {
        std::fprintf(stderr, "%s\n", message);
    }
}

// Called when nobody catches an exception; abort() goes on to pyskip_crashed().
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
    crash_to = fd;
    ggml_set_abort_callback(on_abort);
    std::set_terminate(on_terminate);
    pyskip_crash_listen();
    pyskip_crash_stack();
}

void pyskip_crash_stack() {
    if (crash_to >= 0) {
        pyskip_crash_make_room();
    }
}

void pyskip_crashed(pyskip_crash what, const char * name) {
    const auto say = [](const char * text) { pyskip_crash_write(crash_to, text); };
    switch (what) {
        case pyskip_crash::stopped:
            say("pyskip: llama.cpp stopped (");
            say(aborted_with[0] ? aborted_with : name);
            say("): the model file is damaged, memory is out, or this is a bug: PYSKIP_DEBUG=1 leaves a core dump\n");
            break;
        case pyskip_crash::unreadable:
            say("pyskip: a part of the model file can no longer be read (");
            say(name);
            say("): it was cut off while it was in use, or its disk failed: download it again\n");
            break;
        case pyskip_crash::crashed:
            say("pyskip: llama.cpp crashed (");
            say(name);
            say("): the model file is damaged, a text is nested too deep, or this is a bug: PYSKIP_DEBUG=1 leaves a "
                "core dump\n");
            break;
    }
    pyskip_crash_exit();
}

pyskip_aborts_caught::pyskip_aborts_caught() : before(catches) {
    pyskip_catch_aborts(true);
}

pyskip_aborts_caught::~pyskip_aborts_caught() {
    pyskip_catch_aborts(before);
}

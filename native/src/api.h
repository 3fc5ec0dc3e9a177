// What the functions of pyskip.h have in common: nothing throws across them, and what is wrong they say in one line.
#pragma once

#include "profile.h"
#include "pyskip.h"

#include <exception>
#include <new>
#include <string>

// Puts the line into `error`, cut to fit; NULL or no room: nowhere. Returns the status.
pyskip_status pyskip_report(pyskip_status status, const std::string & line, char * error, size_t n_error);

// The least that keeps memory safe; whose profile it is, its fingerprint tells.
bool pyskip_profile_fits(const pyskip_profile & profile, const llama_context * ctx, std::string & line);

// Runs `body` and turns what it throws into a status.
template <typename F> static pyskip_status pyskip_guard(char * error, size_t n_error, F body) {
    try {
        return body();
    } catch (const std::bad_alloc &) {
        return pyskip_report(PYSKIP_STATUS_NO_MEMORY, "out of memory: close other programs or use a smaller model",
                             error, n_error);
    } catch (const std::exception & e) {
        return pyskip_report(PYSKIP_STATUS_UNSUPPORTED, std::string("llama.cpp failed: ") + e.what(), error, n_error);
    }
}

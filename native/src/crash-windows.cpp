// Crashes are exceptions of the system's, and abort() is a signal of the C library's.

#include "crash-system.h"

#include <csignal>
#include <cstring>

#define WIN32_LEAN_AND_MEAN
#include <windows.h>

namespace {

LONG WINAPI on_exception(EXCEPTION_POINTERS * thrown) {
    switch (thrown->ExceptionRecord->ExceptionCode) {
        case EXCEPTION_IN_PAGE_ERROR: pyskip_crashed(pyskip_crash::unreadable, "in-page error");
        case EXCEPTION_ACCESS_VIOLATION: pyskip_crashed(pyskip_crash::crashed, "access violation");
        case EXCEPTION_STACK_OVERFLOW: pyskip_crashed(pyskip_crash::crashed, "stack overflow");
        case EXCEPTION_ILLEGAL_INSTRUCTION: pyskip_crashed(pyskip_crash::crashed, "illegal instruction");
        case EXCEPTION_INT_DIVIDE_BY_ZERO: pyskip_crashed(pyskip_crash::crashed, "division by zero");
        default: pyskip_crashed(pyskip_crash::crashed, "exception");
    }
}

void on_abort(int) {
    pyskip_crashed(pyskip_crash::stopped, "abort");
}

} // namespace

void pyskip_crash_listen() {
    SetUnhandledExceptionFilter(on_exception);
    std::signal(SIGABRT, on_abort);
}

void pyskip_crash_make_room() {
    ULONG n_bytes = 64 * 1024;
    SetThreadStackGuarantee(&n_bytes);
}

void pyskip_crash_write(int32_t to, const char * text) {
    DWORD n_written;
    WriteFile((HANDLE) (intptr_t) to, text, (DWORD) std::strlen(text), &n_written, nullptr);
}

void pyskip_crash_exit() {
    TerminateProcess(GetCurrentProcess(), 1);
    for (;;) {
    }
}

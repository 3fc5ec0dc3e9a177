// While one of these lives, what makes llama.cpp abort in this thread is thrown as an exception instead.

#pragma once

#include "pyskip.h"

class pyskip_aborts_caught {
public:
    pyskip_aborts_caught();
    ~pyskip_aborts_caught();

    pyskip_aborts_caught(const pyskip_aborts_caught &)             = delete;
    pyskip_aborts_caught & operator=(const pyskip_aborts_caught &) = delete;

private:
    bool before;
};

// Once pyskip_exit_on_crash() was called: this thread's stack may run over, and the line still comes. Cheap when repeated.
PYSKIP_API void pyskip_crash_stack();

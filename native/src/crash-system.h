// What systems do differently when a process crashes: crash-posix.cpp and crash-windows.cpp for crash.cpp.

#pragma once

#include <cstdint>

enum class pyskip_crash {
    stopped,    // abort()
    unreadable, // a page of a mapped file
    crashed,    // all else
};

// From now on a crash calls pyskip_crashed(), in a state where next to nothing may be called.
void pyskip_crash_listen();

// Makes room for that in this thread, should its stack run over. Cheap when repeated.
void pyskip_crash_make_room();

// Callable then. `to` is what pyskip_exit_on_crash() was given.
void              pyskip_crash_write(int32_t to, const char * text);
[[noreturn]] void pyskip_crash_exit();

// crash.cpp's; `name` is the system's word for what happened.
[[noreturn]] void pyskip_crashed(pyskip_crash what, const char * name);

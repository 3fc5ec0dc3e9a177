// The end of the server: the first signal lets requests be answered, the second does not.

#pragma once

// A listener was made. It is not closed when the end begins, for that would cut off streams: who asks then is refused.
void pyskip_shutdown_watch();

// From the signal handler. False: upstream's own way on.
bool pyskip_shutdown_signal(int signal);

bool pyskip_is_shutting_down();

// Of the process, once the server has returned.
int pyskip_shutdown_status(int status);

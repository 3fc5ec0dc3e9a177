// A request has to come whole in a time: one that trickles is cut off, since it holds a thread. Set where cpp-httplib begins to
// read a request (patches/), over once the body was read.

#pragma once

class pyskip_deadline {
public:
    explicit pyskip_deadline(int socket);
    ~pyskip_deadline();

    pyskip_deadline(const pyskip_deadline &)             = delete;
    pyskip_deadline & operator=(const pyskip_deadline &) = delete;

private:
    int socket;
};

// The request that this thread reads is whole.
void pyskip_deadline_met();

// Whether the one that this thread reads came too late.
bool pyskip_deadline_missed();

// What the command line says to pyskip's part of the server. Set once in main.cpp, before anything runs.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

struct pyskip_settings {
    std::string skip;    // of requests that name none; empty: the profile's recommended point, off without a profile
    std::string profile; // a file; empty: beside the model, or one of those that come with pyskip
    std::string default_model;      // of several, for a request that names none
    double      skip_prompt = -1.0; // below 0: not given

    double target_tps = 0.0;  // of requests that name neither this nor `skip`; 0: no pace
    double max_skip   = -1.0; // below 0: not given

    bool low_memory = false; // the model is larger than memory

    std::string lossless; // on: the model drafts for itself where that pays; always: everywhere; empty: it does not

    bool    only_named = false;   // a request that names another model is refused
    int32_t max_queue  = 256;     // requests that wait
    size_t  max_body   = 1 << 20; // bytes
    int32_t max_tokens = -1;      // to generate for one request; -1: as many as fit the context
    int32_t timeout    = 30;      // seconds for a client to send a request, and to take what it is sent
    double  grace      = 30.0;    // seconds for requests to be answered once the server was told to stop
};

pyskip_settings & pyskip_server_settings();

// The body of a request, before a handler of upstream's sees it: well-formed, for a model that is there, of a policy that it
// can run, and in words that upstream takes.

#pragma once

#include "request.h"

#include <string>

// Whether what is asked at this address makes a model compute.
bool pyskip_body_computes(const std::string & path);

// `text` is put into upstream's words. Returns how many places in the queue it takes, 0 if it computes nothing. Throws
// pyskip_refusal.
int32_t pyskip_body_check(const std::string & path, std::string & text);

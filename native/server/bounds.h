// What one request may ask for at once: beyond it upstream's threads recurse until their stack ends, or compute for minutes
// while the others wait.

#pragma once

#include <cstdint>
#include <string>

class common_json;

// Of a body for this address. Throws pyskip_refusal.
void pyskip_bounds_check(const std::string & path, const common_json & body);

// How many places in the queue it takes: a completion for each prompt.
int32_t pyskip_bounds_places(const common_json & body);

// Sublayers that a profile names to be left out, in place of those that a policy names itself. Called by api.cpp, and by the server
// before a request has a slot.

#pragma once

#include "pyskip.h"

#include <cstdint>
#include <string>
#include <vector>

struct pyskip_static_set {
    std::vector<int32_t> layers;
    std::vector<int32_t> attention;
};

// `policy`, or, of a static one with n_sublayers, the same with layers, which lie in `set`. False with a line in `error` if the profile
// names fewer.
PYSKIP_API bool pyskip_static_expand(pyskip_policy & policy, pyskip_static_set & set, std::string & error);

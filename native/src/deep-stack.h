// A function on a stack of any size: for what recurses as deep as its input is long.

#pragma once

#include <cstddef>
#include <functional>

// Runs it in a thread of its own, and throws here what it throws. False if there is no memory for the stack.
bool pyskip_on_deep_stack(size_t n_bytes, const std::function<void()> & run);

// Whether this thread runs such a function.
bool pyskip_is_on_deep_stack();

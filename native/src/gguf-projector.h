// What libmtmd takes on trust of a projector's file, and crashes on. Called by gguf-inspect.cpp.

#pragma once

#include "gguf.h"

#include <string>

// Of a file of architecture clip. False with what was found, and expected, in `found`.
bool pyskip_projector_check(const gguf_context * gguf, std::string & found);

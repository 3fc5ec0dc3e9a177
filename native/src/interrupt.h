// Whether Ctrl-C was pressed during the llama_decode() under way: asked for by the abort callback of api.cpp.

#pragma once

struct pyskip_state;

bool pyskip_interrupted(const pyskip_state * state);

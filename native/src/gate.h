// The gate: the operator before a block that predicts, per row, the error that the stand-in would make, decides, and
// arms the block's region and its stand-in accordingly. Rows whose rule has no profile were decided before: it acts on that.
// In a batch it also packs: rows that run first, then those that the stand-in computes, then those that pass unchanged, so
// that each side computes its own rows only. Runs in llama.cpp's compute threads; built by attach.cpp.
// Only the policies profile and random (with a profile) have gates; in a batch of other rules it packs, and predicts nothing.
// Rows of attention, which mixes tokens, are not packed.

#pragma once

#include <vector>

struct ggml_context;
struct ggml_tensor;
struct pyskip_slot;

// Make the gate of a slot and what depends on it (packed rows, stand-in), in `ctx`. Returns the tensors to expand the
// graph with, in order; sets the slot's members.
std::vector<ggml_tensor *> pyskip_gate_build(ggml_context * ctx, pyskip_slot & slot);

// The join: the operator that takes the place of a block's residual ADD. Per row it adds y, or passes x on, makes the
// test that the row's rule asks for, and decides the next block unless a gate will. Runs in llama.cpp's compute threads.

#pragma once

struct pyskip_slot;

// Turn slot.block.join from an ADD into the join operator.
void pyskip_join_install(pyskip_slot & slot);

// What is computed of one row of the residual stream for a decision: a gate's score, and how a sublayer turned it. Pure. Called
// by the operators (gate.cpp, join.cpp).

#pragma once

#include <cstdint>

// What a gate predicts of a row: weights[n] * log(|x|) + weights[n + 1] + the dot product of its n first with xn.
float pyskip_gate_score(const float * weights, const float * x, const float * xn, int64_t n);

// How z = x + y goes on from x.
struct pyskip_step {
    float cosine; // cos(x, z); 0 if one of them is the zero vector
    float scale;  // |z| / |x|; 1 if x is the zero vector
};

// Of vectors of n values.
pyskip_step pyskip_compare(const float * x, const float * y, int64_t n);

// Elementwise functions of vectors.
#pragma once

#include "vector_exp.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

// x / (1 + exp(-x)), without overflow on either side.
LB_INLINE vf silu(vf x) {
  const vf magnitude = x < vf{} ? -x : x;
  const vf e = vector_exp(-magnitude);
  const vf one = splat(1.0f);
  return x * (x < vf{} ? e : one) / (one + e);
}

// out = silu(gate) * up; out may be gate.
LB_INLINE void swiglu(const float* gate, const float* up, int64_t n, float* out) {
  for_each_vector(n, [&](int64_t j, int64_t count) {
    store_n(out + j, silu(load_n(gate + j, count)) * load_n(up + j, count), count);
  });
}

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

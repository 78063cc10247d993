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

// tanh(x), within 2 units in the last place: an odd polynomial (Cephes' tanhf) where exponentials
// would cancel, 1 - 2 e / (1 + e) with e = exp(-2 |x|) elsewhere.
LB_INLINE vf vector_tanh(vf x) {
  const vf z = x * x;
  vf p = splat(-5.70498872745e-3f);
  p = fma(p, z, splat(2.06390887954e-2f));
  p = fma(p, z, splat(-5.37397155531e-2f));
  p = fma(p, z, splat(1.33314422036e-1f));
  p = fma(p, z, splat(-3.33332819422e-1f));
  const vf near = fma(x * z, p, x);
  const vf magnitude = x < vf{} ? -x : x;
  const vf e = vector_exp(magnitude * splat(-2.0f));
  const vf far = splat(1.0f) - (e + e) / (splat(1.0f) + e);
  return magnitude < splat(0.625f) ? near : (x < vf{} ? -far : far);
}

// out = silu(gate) * up; out may be gate.
LB_INLINE void swiglu(const float* gate, const float* up, int64_t n, float* out) {
  for_each_vector(n, [&](int64_t j, int64_t count) {
    store_n(out + j, silu(load_n(gate + j, count)) * load_n(up + j, count), count);
  });
}

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

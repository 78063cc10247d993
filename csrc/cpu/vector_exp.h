// exp of numbers that are not positive: the weights of a softmax.
#pragma once

#include "simd.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

// exp(x) for x <= 0: within 2 units in the last place down to exp(-87), below that zero. NaN stays
// NaN. x = n ln 2 + r with |r| <= ln 2 / 2, and exp(r) = 1 + r + r^2 P(r), where P minimises the
// largest relative error (5% of half a unit in the last place).
LB_INLINE vf vector_exp(vf x) {
  constexpr float kLeast = -87.0f;
  // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
  constexpr float kRound = 12582912.0f;
  constexpr float kLn2High = 0.693145752f;  // 2^-18 is its last bit: n kLn2High is exact
  constexpr float kLn2Low = 1.42860677e-6f;
  const vf bounded = x < splat(kLeast) ? splat(kLeast) : x;
  const vf shifted = fma(bounded, splat(1.44269504f), splat(kRound));
  const vf n = shifted - splat(kRound);
  const vf r = fma(n, splat(-kLn2Low), fma(n, splat(-kLn2High), bounded));
  vf p = splat(0.00138145943f);
  p = fma(p, r, splat(0.00836871734f));
  p = fma(p, r, splat(0.0416683881f));
  p = fma(p, r, splat(0.166665206f));
  p = fma(p, r, splat(0.499999934f));
  p = fma(p * r, r, r) + splat(1.0f);
  const vu power = (reinterpret_cast<vu>(shifted) << 23) + 0x3f800000u;
  const vf value = p * reinterpret_cast<vf>(power);
  return x < splat(kLeast) ? vf{} : value;
}

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

// What forward and backward of sparse attention share.
#pragma once

#include "simd.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

inline constexpr int32_t kLanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

LB_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
// Words of 32 bits, rounded up to cache lines.
LB_INLINE int64_t whole_line(int64_t words) { return (words + 15) / 16 * 16; }

template <class T>
LB_INLINE T* row_at(const Heads& heads, int64_t batch, int64_t head, int64_t row) {
  return static_cast<T*>(heads.data) + batch * heads.batch + head * heads.head + row * heads.row;
}

inline constexpr float kLog2E = 1.44269504f;

// What scores are scaled by before they are sorted: a sign, or what brings them to the cap's
// domain.
LB_INLINE float query_scale(const SparseGqa& op) {
  if (op.softcap != 0.0f) return op.scale / op.softcap;
  return op.scale > 0.0f ? 1.0f : op.scale < 0.0f ? -1.0f : 0.0f;
}

// What makes logits, powers of two, of the scores then.
LB_INLINE float logit_factor(const SparseGqa& op) {
  if (op.softcap != 0.0f || op.scale == 0.0f) return 1.0f;
  return __builtin_fabsf(op.scale) * kLog2E;
}

// A logit's natural logarithm, exact in spite of the rounded factors.
LB_INLINE double logit_unit(const SparseGqa& op) {
  if (op.softcap != 0.0f) return static_cast<double>(op.softcap) / (op.softcap * kLog2E);
  if (op.scale == 0.0f) return 1.0 / kLog2E;
  return static_cast<double>(__builtin_fabsf(op.scale)) / logit_factor(op);
}

// lse = n ln 2 + rest, power = 2^-n. Where n would leave the powers of float32 the rest is larger.
LB_INLINE void split_lse(float lse, float& rest, float& power) {
  constexpr double kLn2 = 0.6931471805599453;
  constexpr double kMost = 60.0;
  // NaN and infinity stay as they are.
  double n = lse - lse == 0.0f ? lse / kLn2 : 0.0;
  n = n > kMost ? kMost : (n < -kMost ? -kMost : n);
  const auto whole = static_cast<int32_t>(n < 0.0 ? n - 0.5 : n + 0.5);
  rest = static_cast<float>(lse - whole * kLn2);
  const uint32_t bits = static_cast<uint32_t>(127 - whole) << 23;
  std::memcpy(&power, &bits, sizeof power);
}

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

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

// Floats that the own keys' weights and slopes of a key-value head of a segment take.
LB_INLINE int64_t gqa_shares(const SparseGqa& op, const Segment& segment) {
  return op.own_count * 2 * segment.queries * op.group;
}

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

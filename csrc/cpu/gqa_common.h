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

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

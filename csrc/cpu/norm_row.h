// The arithmetic of one normalised row, shared by every kernel that holds an RMSNorm.
#pragma once

#include <cmath>

#include "simd.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

// Rows that are written side by side. They share the conversion of the weight, and past the cache
// several write streams keep more of the memory busy than one; in the cache, wide rows would push
// each other out of the first level.
template <class T, bool streaming>
inline constexpr int kSide = streaming || sizeof(T) == 2 ? 4 : 1;
// Vectors of one row between two switches to the next.
inline constexpr int kBlock = 4;

// Four accumulators hide the latency of an addition; this is their one order.
LB_INLINE float sum_of_four(const vf (&acc)[4]) {
  return horizontal_sum((acc[0] + acc[1]) + (acc[2] + acc[3]));
}

template <class T>
LB_OUTLINE float sum_of_squares(const T* x, int64_t cols) {
  vf acc[4] = {};
  int64_t j = 0;
  for (; j + 4 * W <= cols; j += 4 * W) {
#pragma GCC unroll 2
    for (int u = 0; u < 2; ++u) {
      const Pair pair = load_pair(x + j + 2 * u * W);
      acc[2 * u] = fma(pair.first, pair.first, acc[2 * u]);
      acc[2 * u + 1] = fma(pair.second, pair.second, acc[2 * u + 1]);
    }
  }
  for (; j < cols; j += W) {
    const vf v = load_n(x + j, cols - j < W ? cols - j : W);
    acc[0] = fma(v, v, acc[0]);
  }
  return sum_of_four(acc);
}

LB_INLINE float reciprocal_rms(float sum_of_squares, int64_t cols, float eps) {
  return 1.0f / std::sqrt(sum_of_squares / static_cast<float>(cols) + eps);
}

// How the normed value meets the weight: none, one rounding at the end, or one before as well.
enum class Gain { kNone, kAfter, kBefore };

// weight + offset at columns j..j+n, rounded if the product's factors are; ones without a weight.
template <class T, Gain gain>
LB_INLINE vf gain_at(const NormParams& norm, int64_t j, int64_t n) {
  if constexpr (gain == Gain::kNone) {
    return splat(1.0f);
  } else {
    const vf value = load_n(static_cast<const T*>(norm.weight) + j, n) + splat(norm.weight_offset);
    return gain == Gain::kBefore ? round_through(value, T{}) : value;
  }
}

template <class T, Gain gain>
LB_INLINE vf apply_gain(vf normed, vf factor) {
  if constexpr (gain == Gain::kNone) return normed;
  return (gain == Gain::kBefore ? round_through(normed, T{}) : normed) * factor;
}

template <class T, bool streaming>
LB_INLINE void put(T* p, vf v, int64_t n) {
  if constexpr (streaming) {
    stream(p, v);
  } else {
    store_n(p, v, n);
  }
}

// Calls write(k, j, n, factor) for every vector of `side` rows, block by block; factor is the gain
// at its columns.
template <class T, Gain gain, int side, class Write>
LB_INLINE void write_side_by_side(const NormParams& norm, Write write) {
  int64_t j = 0;
  for (; j + kBlock * W <= norm.cols; j += kBlock * W) {
    vf factor[kBlock];
#pragma GCC unroll 4
    for (int u = 0; u < kBlock; ++u) factor[u] = gain_at<T, gain>(norm, j + u * W, W);
    for (int k = 0; k < side; ++k) {
#pragma GCC unroll 4
      for (int u = 0; u < kBlock; ++u) write(k, j + u * W, static_cast<int64_t>(W), factor[u]);
    }
  }
  for (; j < norm.cols; j += W) {
    const int64_t n = norm.cols - j < W ? norm.cols - j : W;
    const vf factor = gain_at<T, gain>(norm, j, n);
    for (int k = 0; k < side; ++k) write(k, j, n, factor);
  }
}

// Whether rows of `cols` may be streamed to `out`: whole aligned vectors only.
template <class T>
bool can_stream(bool asked, const Rows& out, int64_t cols) {
  return asked && cols % W == 0 && out.stride % W == 0 &&
         vector_aligned(static_cast<const T*>(out.data));
}

// Runs f<T, gain>() for the storage type and rounding of `norm`.
template <class F>
LB_INLINE void dispatch_norm(const NormParams& norm, F f) {
  dispatch_type(norm.dtype, [&]<class T>(T) {
    if (norm.weight == nullptr) {
      f.template operator()<T, Gain::kNone>();
    } else if (norm.round_before_weight) {
      f.template operator()<T, Gain::kBefore>();
    } else {
      f.template operator()<T, Gain::kAfter>();
    }
  });
}

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

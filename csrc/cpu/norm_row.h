// The arithmetic of one normalised row, shared by every kernel that holds an RMSNorm.
#pragma once

#include <cmath>

#include "simd.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

// Four accumulators hide the latency of the additions; their order is fixed by `cols` alone.
template <class Value>
LB_INLINE float reduce_row(int64_t cols, Value value) {
  vf acc[4] = {};
  int64_t j = 0;
  for (; j + 4 * W <= cols; j += 4 * W) {
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) acc[u] = value(acc[u], j + u * W, static_cast<int64_t>(W));
  }
  for (; j + W <= cols; j += W) acc[0] = value(acc[0], j, static_cast<int64_t>(W));
  if (j < cols) acc[1] = value(acc[1], j, cols - j);
  return horizontal_sum((acc[0] + acc[1]) + (acc[2] + acc[3]));
}

template <class T>
LB_OUTLINE float sum_of_squares(const T* x, int64_t cols) {
  return reduce_row(cols, [x](vf acc, int64_t j, int64_t n) {
    const vf v = load_n(x + j, n);
    return fma(v, v, acc);
  });
}

LB_INLINE float reciprocal_rms(float sum_of_squares, int64_t cols, float eps) {
  return 1.0f / std::sqrt(sum_of_squares / static_cast<float>(cols) + eps);
}

// weight + offset at columns j..j+n of `norm`; the caller knows that there is a weight.
template <class T>
LB_INLINE vf gain_at(const NormParams& norm, int64_t j, int64_t n) {
  return load_n(static_cast<const T*>(norm.weight) + j, n) + splat(norm.weight_offset);
}

// How the normed value meets the weight: none, one rounding at the end, or one before as well.
enum class Gain { kNone, kAfter, kBefore };

template <class T, Gain gain>
LB_INLINE vf apply_gain(const NormParams& norm, vf normed, int64_t j, int64_t n) {
  if constexpr (gain == Gain::kNone) {
    return normed;
  } else if constexpr (gain == Gain::kAfter) {
    return normed * gain_at<T>(norm, j, n);
  } else {
    return round_through(normed, T{}) * round_through(gain_at<T>(norm, j, n), T{});
  }
}

template <class T, bool streaming>
LB_INLINE void put(T* p, vf v, int64_t n) {
  if constexpr (streaming) {
    stream(p, v);
  } else {
    store_n(p, v, n);
  }
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

// The largest values of rows, and sums of exponentials: what a head keeps of its products.
//
// Order is that of torch.sort: NaN above every number, equal values by index. A block of the
// vocabulary is reduced by one thread; blocks are joined in their order.
#pragma once

#include <cmath>

#include "vector_exp.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

// The most values that are kept of a row.
inline constexpr int64_t kTopMost = 64;
// Vocabulary entries of a block.
inline constexpr int64_t kTopBlock = 128;

LB_INLINE bool beats(float value, float best) {
  return value > best || (__builtin_isnan(value) && !__builtin_isnan(best));
}

LB_INLINE float scalar_exp(float x) {
  float lane[W];
  store(lane, vector_exp(splat(x)));
  return lane[0];
}

// Inserts into the `held` largest of a row, largest first, if it belongs to the k largest. Values
// must come in the order of their indices.
LB_INLINE void keep_top(float* value, int64_t* index, int64_t& held, int64_t k, float v,
                        int64_t i) {
  if (held == k && !beats(v, value[k - 1])) return;
  int64_t at = held < k ? held++ : k - 1;
  for (; at > 0 && beats(v, value[at - 1]); --at) {
    value[at] = value[at - 1];
    index[at] = index[at - 1];
  }
  value[at] = v;
  index[at] = i;
}

// sum_i exp(values[i] - most) in a fixed order; values are padded with -inf to a multiple of W.
LB_INLINE float sum_of_exponentials(const float* values, int64_t padded, float most) {
  vf sum = {};
  for (int64_t i = 0; i < padded; i += W) {
    sum = sum + vector_exp(load(values + i) - splat(most));
  }
  return horizontal_sum(sum);
}

// The k largest of one row's products with block [begin, begin + count), count <= kTopBlock, and
// (sum not null) the sum of their exponentials relative to the largest.
LB_INLINE void reduce_block(const float* logits, int64_t count, int64_t begin, int64_t k,
                            float* value, int64_t* index, float* sum) {
  int64_t held = 0;
  for (int64_t i = 0; i < count; ++i) keep_top(value, index, held, k, logits[i], begin + i);
  if (sum != nullptr) {
    float padded[kTopBlock];
    for (int64_t i = 0; i < kTopBlock; ++i) padded[i] = i < count ? logits[i] : -INFINITY;
    *sum = sum_of_exponentials(padded, kTopBlock, value[0]);
  }
}

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

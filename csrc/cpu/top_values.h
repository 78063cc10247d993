// The largest values of rows, and sums of exponentials: what a head keeps of its products.
//
// Order is that of torch.sort: NaN above every number, equal values by index. A block of the
// vocabulary is reduced by one thread; blocks are joined in their order.
#pragma once

#include <cmath>

#include "vector_exp.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

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

// Whether a value may belong above `least`: false only if all are at most that.
LB_INLINE bool any_above(vf values, float least) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(values, splat(least), _CMP_NLE_UQ) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps(values, splat(least), _CMP_NLE_UQ)) != 0;
#else
  const vi below = values <= splat(least);
  return (below[0] & below[1] & below[2] & below[3]) == 0;
#endif
}

// The k largest of one row's products with block [begin, begin + count), count <= kTopBlock, and
// (sum not null) the sum of the block's exponentials relative to the largest: NaN if that is
// infinite.
LB_INLINE void reduce_block(const float* logits, int64_t count, int64_t begin, int64_t k,
                            float* value, int64_t* index, float* sum) {
  int64_t held = 0;
  for_each_vector(count, [&](int64_t i, int64_t n) {
    // Few vectors hold anything once k values are kept.
    if (held == k && n == W && !any_above(load(logits + i), value[k - 1])) return;
    for (int64_t e = i; e < i + n; ++e) keep_top(value, index, held, k, logits[e], begin + e);
  });
  if (sum != nullptr) {
    float padded[kTopBlock];
    for (int64_t i = 0; i < kTopBlock; ++i) padded[i] = i < count ? logits[i] : -INFINITY;
    *sum = sum_of_exponentials(padded, kTopBlock, value[0]);
  }
}

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

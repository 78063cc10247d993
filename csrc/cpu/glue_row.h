// The arithmetic between two steps of a drafter's chain, for one row. Everything is computed in
// float32 and rounded once, when it is stored: with float outputs nothing is rounded at all.
//
// The sums run over the row once each, in the first-level cache. One pass for both norms would
// need r^2 sum (x g)^2, which is 0 * infinity where the squares of x overflow.
#pragma once

#include "norm_row.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

// out = rms_norm(x, gain), in natural order; out may be x.
template <class X, class T, class Out>
LB_OUTLINE void normed_row(const X* x, const T* gain, float eps, int64_t cols, Out* out) {
  const vf r = splat(reciprocal_rms(sum_of_squares(x, cols), cols, eps));
  for_each_vector(cols, [&](int64_t j, int64_t n) {
    store_n(out + j, load_n(x + j, n) * r * load_n(gain + j, n), n);
  });
}

// state = rms_norm(x, gain) and hidden = rms_norm(state, hidden_gain), where hidden comes from the
// unrounded state; state may be x.
template <class X, class T, class Out>
LB_OUTLINE void twice_normed_row(const X* x, const T* gain, const T* hidden_gain, float eps,
                                 int64_t cols, Out* state, Out* hidden) {
  const vf r = splat(reciprocal_rms(sum_of_squares(x, cols), cols, eps));
  auto state_at = [&](int64_t j, int64_t n) __attribute__((always_inline)) {
    return load_n(x + j, n) * r * load_n(gain + j, n);
  };
  vf acc[4] = {};
  int64_t j = 0;
  for (; j + 4 * W <= cols; j += 4 * W) {
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) {
      const vf y = state_at(j + u * W, W);
      acc[u] = fma(y, y, acc[u]);
    }
  }
  for (; j < cols; j += W) {
    const vf y = state_at(j, cols - j < W ? cols - j : W);
    acc[0] = fma(y, y, acc[0]);
  }
  const vf s = splat(reciprocal_rms(sum_of_four(acc), cols, eps));
  for_each_vector(cols, [&](int64_t at, int64_t n) {
    const vf y = state_at(at, n);
    store_n(hidden + at, y * s * load_n(hidden_gain + at, n), n);
    store_n(state + at, y, n);
  });
}

// joined [2 cols] = [rms_norm(entered, input_gain); rms_norm(state, hidden_gain)], where state is
// rms_norm(x, gain), or x without a gain; state may be x. X, T and Out are the storage types of the
// stream, of the weights and of the results.
template <class X, class T, class Out>
LB_INLINE void glue_row(const X* x, const T* entered, const T* gain, const T* hidden_gain,
                        const T* input_gain, float eps, int64_t cols, Out* joined, Out* state) {
  normed_row(entered, input_gain, eps, cols, joined);
  if (gain != nullptr) {
    twice_normed_row(x, gain, hidden_gain, eps, cols, state, joined + cols);
    return;
  }
  normed_row(x, hidden_gain, eps, cols, joined + cols);
  for_each_vector(cols, [&](int64_t j, int64_t n) { store_n(state + j, load_n(x + j, n), n); });
}

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

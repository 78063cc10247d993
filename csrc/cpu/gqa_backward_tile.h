// Products of small tiles: the inner loops of the backward pass of sparse attention.
//
// One shape serves all five products of a block: M rows of sums, N vectors wide, over `count`
// steps. An element of the left side is broadcast, the right side is read in whole vectors. Every
// sum runs through one accumulator in the order of the steps, whatever the tile that holds it.
#pragma once

#include "vector_exp.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

// Rows of a strip: with two vectors of sums to a row they fill the registers but for the operands.
inline constexpr int kStrip = W == 16 ? 8 : 6;
// Keys of a panel: the lanes of a strip's sums.
inline constexpr int kPanel = 2 * W;
// Strips of query rows, and keys, whose weights are held at once.
inline constexpr int kStrips = 16;
inline constexpr int kBlockRows = kStrips * kStrip;
inline constexpr int kBlockKeys = 64;
inline constexpr int kBlockPanels = kBlockKeys / kPanel;
// Floats from one row of weights to the next: no power of two, so that a column spreads over the
// cache's sets.
inline constexpr int64_t kWeightStride = kBlockKeys + 16;
static_assert(kBlockKeys % kPanel == 0 && kPanel % 2 == 0 && kStrip % 2 == 0);

// Floats from one packed row of d channels to the next, for the same reason.
LB_INLINE int64_t packed_stride(int64_t d) {
  const int64_t width = (d + W - 1) / W * W;
  return width % 64 == 0 ? width + 16 : width;
}

// sums[m][n] += left[m * row + k * step] * right[k * stride + n W ..] for k < count.
template <int M, int N>
LB_INLINE void multiply(const float* left, int64_t row, int64_t step, const float* right,
                        int64_t stride, int64_t count, vf (&sums)[M][N]) {
  for (int64_t k = 0; k < count; ++k) {
    vf b[N];
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) b[n] = load(right + n * W);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const vf a = splat(left[m * row]);
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) sums[m][n] = fma(a, b[n], sums[m][n]);
    }
    left += step;
    right += stride;
  }
}

// The same, added to M rows of memory, N vectors wide.
template <int M, int N>
LB_INLINE void add_tile(const float* left, int64_t row, int64_t step, const float* right,
                        int64_t stride, int64_t count, float* to) {
  vf sums[M][N] = {};
  multiply<M, N>(left, row, step, right, stride, count, sums);
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) {
      float* at = to + m * stride + n * W;
      store(at, load(at) + sums[m][n]);
    }
  }
}

// grad_q of a strip: weights [M, count] times packed rows [count, channels].
template <int M>
LB_OUTLINE void add_rows(const float* weights, const float* rows, int64_t stride, int64_t count,
                         int64_t d, float* to) {
  int64_t j = 0;
  for (; j + W < d; j += 2 * W) {
    add_tile<M, 2>(weights, kWeightStride, 1, rows + j, stride, count, to + j);
  }
  if (j < d) add_tile<M, 1>(weights, kWeightStride, 1, rows + j, stride, count, to + j);
}

// M keys' sums over query rows: weights [count, M], taken by columns, times packed rows.
template <int M, int N>
LB_OUTLINE void add_column_tile(const float* weights, const float* rows, int64_t stride,
                                int64_t count, float* to) {
  add_tile<M, N>(weights, 1, kWeightStride, rows, stride, count, to);
}

template <int N>
LB_INLINE void add_column_stripe(const float* weights, int64_t keys, const float* rows,
                                 int64_t stride, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + kStrip <= keys; i += kStrip) {
    add_column_tile<kStrip, N>(weights + i, rows, stride, count, to + i * stride);
  }
  if constexpr (kStrip == 6) {
    if (keys - i == 4) add_column_tile<4, N>(weights + i, rows, stride, count, to + i * stride);
    if (keys - i == 2) add_column_tile<2, N>(weights + i, rows, stride, count, to + i * stride);
  }
}

// grad_k and grad_v of `keys` keys, whole panels: weights [count, keys] transposed times packed
// rows [count, channels].
LB_INLINE void add_columns(const float* weights, int64_t keys, const float* rows, int64_t stride,
                           int64_t count, int64_t d, float* to) {
  int64_t j = 0;
  for (; j + W < d; j += 2 * W) {
    add_column_stripe<2>(weights, keys, rows + j, stride, count, to + j);
  }
  if (j < d) add_column_stripe<1>(weights, keys, rows + j, stride, count, to + j);
}

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

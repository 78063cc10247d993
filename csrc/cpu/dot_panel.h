// Dot products of a few prepared activation rows with many weight rows, at memory speed.
//
// The activations wait in float32, zero-padded, in the order in which the weights arrive. A vector
// of 2 W bfloat16 weights is read as W words of 32 bits: a shift yields the even elements, a mask
// the odd ones, so that no lane ever crosses another. Activations of a bfloat16 panel are therefore
// stored as W even elements followed by W odd ones.
//
// Every dot product runs through one accumulator in one order, whatever the tile that holds it:
// results do not depend on the number of rows nor on how the vocabulary is cut.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

inline constexpr int kPackBlock = 2 * W;

// Where element k of a row lies in its packed form.
template <class T>
LB_INLINE int64_t packed_position(int64_t k) {
  if constexpr (__is_same(T, bf16)) {
    const int64_t within = k % kPackBlock;
    return k - within + within / 2 + (within % 2 != 0 ? W : 0);
  } else {
    return k;
  }
}

// The last n < 2 W elements of a row; missing ones are zero.
template <class T>
LB_INLINE Pair load_pair_tail(const T* p, int64_t n) {
  T lane[kPackBlock] = {};
#if defined(__AVX512BW__)
  const uint32_t mask = (uint32_t{1} << n) - 1;
  if constexpr (sizeof(T) == 2) {
    const __m512i halves = _mm512_maskz_loadu_epi16(mask, p);
    std::memcpy(lane, &halves, sizeof halves);
  } else {
    store(lane, _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask & 0xffffu), p));
    store(lane + W, _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), p + W));
  }
#else
  std::memcpy(lane, p, static_cast<size_t>(n) * sizeof(T));
#endif
  return load_pair(lane);
}

// out[m * out_stride + v] = packed[m] . weight[v] for m < rows, v < features.
template <class T, int features, int rows>
LB_INLINE void dot_tile(const T* weight, int64_t weight_stride, const float* packed,
                        int64_t packed_stride, int64_t k, float* out, int64_t out_stride) {
  vf acc[features][rows] = {};
  auto step = [&](int64_t j, auto load_weights) {
    Pair w[features];
#pragma GCC unroll 8
    for (int v = 0; v < features; ++v) w[v] = load_weights(weight + v * weight_stride + j);
#pragma GCC unroll 8
    for (int m = 0; m < rows; ++m) {
      const vf first = load(packed + m * packed_stride + j);
      const vf second = load(packed + m * packed_stride + j + W);
#pragma GCC unroll 8
      for (int v = 0; v < features; ++v) {
        acc[v][m] = fma(w[v].second, second, fma(w[v].first, first, acc[v][m]));
      }
    }
  };
  int64_t j = 0;
  for (; j + kPackBlock <= k; j += kPackBlock) {
    step(j, [](const T* p) __attribute__((always_inline)) { return load_pair(p); });
  }
  if (j < k) {
    step(j,
         [n = k - j](const T* p) __attribute__((always_inline)) { return load_pair_tail(p, n); });
  }
#pragma GCC unroll 8
  for (int m = 0; m < rows; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < features; ++v) out[m * out_stride + v] = horizontal_sum(acc[v][m]);
  }
}

// Weight rows that are read side by side. For one activation row as many streams as the prefetchers
// follow; a tile of several rows keeps its sums in registers instead.
inline constexpr int kPanelFeatures = 8;
inline constexpr int kTileFeatures = 4;
inline constexpr int kTileRows = W == 16 ? 4 : 2;

// products[m * kPanelFeatures + i] = packed[m] . weight[i] for the features of one panel.
template <class T>
LB_INLINE void dot_full_panel(const T* weight, int64_t weight_stride, const float* packed,
                              int64_t packed_stride, int64_t rows, int64_t k, float* products) {
  int64_t m = 0;
  for (; m + kTileRows <= rows; m += kTileRows) {
    for (int v = 0; v < kPanelFeatures; v += kTileFeatures) {
      dot_tile<T, kTileFeatures, kTileRows>(weight + v * weight_stride, weight_stride,
                                            packed + m * packed_stride, packed_stride, k,
                                            products + m * kPanelFeatures + v, kPanelFeatures);
    }
  }
  for (; m < rows; ++m) {
    dot_tile<T, kPanelFeatures, 1>(weight, weight_stride, packed + m * packed_stride, packed_stride,
                                   k, products + m * kPanelFeatures, kPanelFeatures);
  }
}

// Calls visit(v, count, products) for every few weight rows of [begin, end), where
// products[m * kPanelFeatures + i] = packed[m] . weight[v + i].
template <class T, class Visit>
LB_INLINE void dot_panel(const ConstRows& weight, const float* packed, int64_t packed_stride,
                         int64_t rows, int64_t k, int64_t begin, int64_t end, float* products,
                         Visit visit) {
  const T* base = static_cast<const T*>(weight.data);
  int64_t v = begin;
  for (; v + kPanelFeatures <= end; v += kPanelFeatures) {
    dot_full_panel(base + v * weight.stride, weight.stride, packed, packed_stride, rows, k,
                   products);
    visit(v, static_cast<int64_t>(kPanelFeatures), products);
  }
  for (; v < end; ++v) {
    for (int64_t m = 0; m < rows; ++m) {
      dot_tile<T, 1, 1>(base + v * weight.stride, weight.stride, packed + m * packed_stride,
                        packed_stride, k, products + m * kPanelFeatures, kPanelFeatures);
    }
    visit(v, static_cast<int64_t>(1), products);
  }
}

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

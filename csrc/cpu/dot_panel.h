// Dot products of a few prepared activation rows with many weight rows, at memory speed.
//
// The activations wait in float32, zero-padded, in the order in which the weights arrive. A vector
// of 2 W bfloat16 weights is read as W words of 32 bits: a shift yields the even elements, a mask
// the odd ones, so that no lane ever crosses another. Activations of a bfloat16 panel are therefore
// stored as W even elements followed by W odd ones; the other formats arrive in their own order.
//
// Every dot product runs through one accumulator in one order, whatever the tile that holds it:
// results do not depend on the number of rows nor on how the weight rows are cut.
#pragma once

#include "weight_format.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

// Weight rows that are read side by side. For one activation row as many streams as the prefetchers
// follow; a tile of several rows keeps its sums in registers instead.
inline constexpr int kPanelFeatures = 8;
inline constexpr int kTileFeatures = 4;
inline constexpr int kTileRows = W == 16 ? 4 : 2;

// Brings a row to the order of a format and pads it with zeros to packed_width(k).
template <class F>
LB_INLINE void pack_panel(const float* natural, int64_t k, float* packed) {
  for (int64_t j = 0; j < k; ++j) packed[packed_position<typename F::Order>(j)] = natural[j];
  for (int64_t j = k; j < packed_width(k); ++j)
    packed[packed_position<typename F::Order>(j)] = 0.0f;
}

// out[m * kPanelFeatures + v] = packed[m] . weight[v] for m < rows, v < features. `weight` starts
// at the first of the features.
template <class F, int features, int rows>
LB_INLINE void dot_tile(const WeightMatrix& weight, const float* packed, int64_t packed_stride,
                        float* out) {
  vf acc[features][rows] = {};
  const char* base = static_cast<const char*>(weight.data);
  auto step = [&](int64_t j, auto open) __attribute__((always_inline)) {
    typename F::Step w[features];
#pragma GCC unroll 8
    for (int v = 0; v < features; ++v) w[v] = open(v);
#pragma GCC unroll 32
    for (int i = 0; i < F::kStep / W; ++i) {
      vf value[features];
#pragma GCC unroll 8
      for (int v = 0; v < features; ++v) value[v] = F::vector(w[v], i);
#pragma GCC unroll 8
      for (int m = 0; m < rows; ++m) {
        const vf x = load(packed + m * packed_stride + j + i * W);
#pragma GCC unroll 8
        for (int v = 0; v < features; ++v) acc[v][m] = fma(value[v], x, acc[v][m]);
      }
    }
  };
  int64_t j = 0;
  for (; j + F::kStep <= F::columns(weight); j += F::kStep) {
    step(j, [&](int v) __attribute__((always_inline)) {
      return F::open(base + v * weight.stride + F::bytes(j), weight, v, j);
    });
  }
  if (j < F::columns(weight)) {
    alignas(64) char tail[features][F::kStepBytes];
    const int64_t left = F::bytes(F::columns(weight) - j);
    step(j, [&](int v) __attribute__((always_inline)) {
      load_tail_bytes<F::kStepBytes>(tail[v], base + v * weight.stride + F::bytes(j), left);
      return F::open(tail[v], weight, v, j);
    });
  }
#pragma GCC unroll 8
  for (int v = 0; v < features; ++v) {
    const float scale = F::row_scale(weight, v);
#pragma GCC unroll 8
    for (int m = 0; m < rows; ++m) {
      out[m * kPanelFeatures + v] = horizontal_sum(acc[v][m]) * scale;
    }
  }
}

// products[m * kPanelFeatures + i] = packed[m] . weight[v + i] for i < count: a whole panel of
// kPanelFeatures weight rows, or a single one.
template <class F>
LB_OUTLINE void panel_products(const WeightMatrix& weight, const float* packed,
                               int64_t packed_stride, int64_t rows, int64_t v, int64_t count,
                               float* products) {
  const WeightMatrix first = rows_from<F>(weight, v);
  if (count != kPanelFeatures) {
    for (int64_t m = 0; m < rows; ++m) {
      dot_tile<F, 1, 1>(first, packed + m * packed_stride, packed_stride,
                        products + m * kPanelFeatures);
    }
    return;
  }
  const WeightMatrix second = rows_from<F>(first, kTileFeatures);
  int64_t m = 0;
  for (; m + kTileRows <= rows; m += kTileRows) {
    const float* x = packed + m * packed_stride;
    float* out = products + m * kPanelFeatures;
    dot_tile<F, kTileFeatures, kTileRows>(first, x, packed_stride, out);
    dot_tile<F, kTileFeatures, kTileRows>(second, x, packed_stride, out + kTileFeatures);
  }
  for (; m < rows; ++m) {
    dot_tile<F, kPanelFeatures, 1>(first, packed + m * packed_stride, packed_stride,
                                   products + m * kPanelFeatures);
  }
}

// Calls body(v, count) for the panels of [begin, end).
template <class Body>
LB_INLINE void for_each_panel(int64_t begin, int64_t end, Body body) {
  int64_t v = begin;
  for (; v + kPanelFeatures <= end; v += kPanelFeatures) {
    body(v, static_cast<int64_t>(kPanelFeatures));
  }
  for (; v < end; ++v) body(v, static_cast<int64_t>(1));
}

// Calls visit(v, count, products) for every few weight rows of [begin, end), where
// products[m * kPanelFeatures + i] = packed[m] . weight[v + i].
template <class F, class Visit>
LB_INLINE void dot_panel(const WeightMatrix& weight, const float* packed, int64_t packed_stride,
                         int64_t rows, int64_t begin, int64_t end, float* products, Visit visit) {
  for_each_panel(begin, end, [&](int64_t v, int64_t count) {
    panel_products<F>(weight, packed, packed_stride, rows, v, count, products);
    visit(v, count, products);
  });
}

// The same for weights of any format.
template <class Visit>
LB_INLINE void multiply_panel(const WeightMatrix& weight, const float* packed,
                              int64_t packed_stride, int64_t rows, int64_t begin, int64_t end,
                              float* products, Visit visit) {
  for_each_panel(begin, end, [&](int64_t v, int64_t count) {
    dispatch_format(weight.format, [&]<class F>(F) {
      panel_products<F>(weight, packed, packed_stride, rows, v, count, products);
    });
    visit(v, count, products);
  });
}

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

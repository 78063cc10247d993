// Dot products at memory speed: weights are converted in registers and used by every activation row
// of a tile.
//
// Every dot product runs through one accumulator in one order, whatever the tile that holds it:
// results do not depend on the number of rows nor on how the weight rows are cut.
#include "dot_panel.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

// For one activation row, as many weight rows side by side as the prefetchers follow; a tile of
// several rows keeps its sums in registers instead.
constexpr int kTileFeatures = 4;
constexpr int kTileRows = W == 16 ? 4 : 2;

// While a panel is in work the next one is brought into the second-level cache, where two fit.
// Longer rows are streams that the processor follows by itself, over a shorter distance.
constexpr int64_t kPanelBytes = 64 * 1024;
constexpr int64_t kStreamDistance = 1024;

// out[m * kPanelFeatures + v] = packed[m] . weight[v] for m < rows, v < features. `ahead` is the
// distance, in bytes, of what is brought into the cache meanwhile.
template <class F, int features, int rows>
LB_INLINE void dot_tile(const WeightMatrix& weight, const float* packed, int64_t packed_stride,
                        int64_t ahead, float* out) {
  vf acc[features][rows] = {};
  const char* base = static_cast<const char*>(weight.data);
  const int64_t columns = F::columns(weight);
  auto step = [&](int64_t j, auto open) __attribute__((always_inline)) {
    typename F::Step w[features];
#pragma GCC unroll 8
    for (int v = 0; v < features; ++v) w[v] = open(v);
#pragma GCC unroll 32
    for (int i = 0; i < F::kStep / W; ++i) {
      vf value[features];
#pragma GCC unroll 8
      for (int v = 0; v < features; ++v) value[v] = F::vector(w[v], i);
#pragma GCC unroll 4
      for (int m = 0; m < rows; ++m) {
        const vf x = load(packed + m * packed_stride + j + i * W);
#pragma GCC unroll 8
        for (int v = 0; v < features; ++v) acc[v][m] = fma(value[v], x, acc[v][m]);
      }
    }
  };
  int64_t j = 0;
  for (; j + F::kStep <= columns; j += F::kStep) {
    step(j, [&](int v) __attribute__((always_inline)) {
      const char* p = base + v * weight.stride + F::bytes(j);
#pragma GCC unroll 2
      for (int line = 0; line < F::kStepBytes; line += 64) prefetch(p + ahead + line);
      return F::open(p, weight, v, j);
    });
  }
  if (j < columns) {
    alignas(64) char tail[features][F::kStepBytes];
    step(j, [&](int v) __attribute__((always_inline)) {
      load_tail_bytes<F::kStepBytes>(tail[v], base + v * weight.stride + F::bytes(j),
                                     F::bytes(columns - j));
      return F::open(tail[v], weight, v, j);
    });
  }
#pragma GCC unroll 8
  for (int v = 0; v < features; ++v) {
    const float scale = F::row_scale(weight, v);
#pragma GCC unroll 4
    for (int m = 0; m < rows; ++m) {
      out[m * kPanelFeatures + v] = horizontal_sum(acc[v][m]) * scale;
    }
  }
}

// A tile of `rows` activation rows with a whole panel of weights.
template <class F, int rows>
LB_INLINE void wide_tile(const WeightMatrix& weight, const float* packed, int64_t packed_stride,
                         int64_t ahead, float* out) {
  dot_tile<F, kTileFeatures, rows>(weight, packed, packed_stride, ahead, out);
  dot_tile<F, kTileFeatures, rows>(rows_from<F>(weight, kTileFeatures), packed, packed_stride,
                                   ahead, out + kTileFeatures);
}

template <class F>
LB_INLINE void whole_panel(const WeightMatrix& weight, const float* packed, int64_t packed_stride,
                           int64_t rows, float* products) {
  const int64_t bytes = kPanelFeatures * weight.stride;
  int64_t ahead = bytes > 0 && bytes <= kPanelBytes ? bytes : kStreamDistance;
  for (int64_t m = 0; m < rows;) {
    const int64_t left = rows - m;
    const float* x = packed + m * packed_stride;
    float* out = products + m * kPanelFeatures;
    if (left >= kTileRows) {
      wide_tile<F, kTileRows>(weight, x, packed_stride, ahead, out);
      m += kTileRows;
    } else if (kTileRows > 3 && left == 3) {
      wide_tile<F, 3>(weight, x, packed_stride, ahead, out);
      m += 3;
    } else if (left == 2) {
      wide_tile<F, 2>(weight, x, packed_stride, ahead, out);
      m += 2;
    } else {
      dot_tile<F, kPanelFeatures, 1>(weight, x, packed_stride, ahead, out);
      m += 1;
    }
    // The first tile has brought the next panel.
    ahead = 0;
  }
}

}  // namespace

void panel_products(const WeightMatrix& weight, const float* packed, int64_t packed_stride,
                    int64_t rows, int64_t v, int64_t count, float* products) {
  dispatch_format(weight.format, [&]<class F>(F) {
    const WeightMatrix from = rows_from<F>(weight, v);
    if (count == kPanelFeatures) {
      whole_panel<F>(from, packed, packed_stride, rows, products);
      return;
    }
    for (int64_t m = 0; m < rows; ++m) {
      dot_tile<F, 1, 1>(from, packed + m * packed_stride, packed_stride, 0,
                        products + m * kPanelFeatures);
    }
  });
}

}  // namespace leeboard::LEEBOARD_LEVEL

// Products of a few rows with weight rows as they lie: each is summed along the weight's row.
//
// Every product runs through one accumulator in one order, whatever the tile that holds it: a row's
// result does not depend on how many others there are.
#pragma once

#include "attend_tile.h"
#include "panel_vector.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

// sums[m * weights + i] = weight row i . x row m, W of them.
template <class T, int weights, int count>
LB_INLINE void dot_tile(const T* const* rows, const PanelRun* runs, int64_t run_count,
                        const float* const* x, vf* sums) {
#pragma GCC unroll 16
  for (int i = 0; i < weights * count; ++i) sums[i] = vf{};
  for (const PanelRun* run = runs; run != runs + run_count; ++run) {
    auto step = [&](int64_t j, auto load_weight, auto load_x) __attribute__((always_inline)) {
      vf value[count];
#pragma GCC unroll 4
      for (int m = 0; m < count; ++m) value[m] = load_x(x[m] + run->place + j);
#pragma GCC unroll 8
      for (int i = 0; i < weights; ++i) {
        const vf w = load_weight(rows[i] + run->weight + j);
#pragma GCC unroll 4
        for (int m = 0; m < count; ++m) {
          sums[m * weights + i] = fma(w, value[m], sums[m * weights + i]);
        }
      }
    };
    int64_t j = 0;
    for (; j + W <= run->count; j += W) {
      step(
          j, [](const T* p) __attribute__((always_inline)) { return load(p); },
          [](const float* p) __attribute__((always_inline)) { return load(p); });
    }
    if (j < run->count) {
      const int64_t n = run->count - j;
      step(
          j, [n](const T* p) __attribute__((always_inline)) { return load_some(p, n); },
          [n](const float* p) __attribute__((always_inline)) { return load_some(p, n); });
    }
  }
}

// Weight rows that meet `count` rows of x at a time: W products in all.
template <int count>
inline constexpr int kFewWeights = W / count < 8 ? W / count : 8;

template <class T, int count>
LB_OUTLINE void few_tile(const T* const* rows, const PanelRun* runs, int64_t run_count,
                         const float* const* x, float* products) {
  vf sums[W];
#pragma GCC unroll 2
  for (int half = 0; half < W / (count * kFewWeights<count>); ++half) {
    vf part[count * kFewWeights<count>];
    dot_tile<T, kFewWeights<count>, count>(rows + half * kFewWeights<count>, runs, run_count, x,
                                           part);
#pragma GCC unroll 16
    for (int i = 0; i < count * kFewWeights<count>; ++i) {
      sums[half * count * kFewWeights<count> + i] = part[i];
    }
  }
  store(products, sums_of(sums));
}

// y[m][i] = weight row channels[begin + i] (begin + i, without channels) . x[m], for i < end -
// begin <= kFewPlaces.
inline constexpr int64_t kFewPlaces = 32;

template <class T>
LB_INLINE void few_product(const ConstRows& weight, const int64_t* channels, int64_t begin,
                           int64_t end, const PanelRun* runs, int64_t run_count, int64_t rows,
                           const float* x, int64_t x_stride, bool far, float* y) {
  const T* data = static_cast<const T*>(weight.data);
  const T* row[kFewPlaces + W];
  for (int64_t i = 0; i < kFewPlaces + W; ++i) {
    const int64_t place = begin + i < end ? begin + i : end - 1;
    row[i] = data + (channels == nullptr ? place : channels[place]) * weight.stride;
  }
  auto tile = [&]<int count>(int64_t m, Lanes<count>) __attribute__((always_inline)) {
    const float* from[count];
    for (int i = 0; i < count; ++i) from[i] = x + (m + i < rows ? m + i : rows - 1) * x_stride;
    constexpr int kWeights = W / count;
    for (int64_t i = 0; i < end - begin; i += kWeights) {
      if (far && m == 0) {
        for (int64_t c = i + kWeights; c < i + 2 * kWeights && begin + c < end; ++c) {
          bring_row(row[c], runs, run_count);
        }
      }
      float products[W];
      few_tile<T, count>(row + i, runs, run_count, from, products);
      for (int c = 0; c < count && m + c < rows; ++c) {
        std::memcpy(y + (m + c) * kFewPlaces + i, products + c * kWeights,
                    kWeights * sizeof(float));
      }
    }
  };
  for (int64_t m = 0; m < rows;) {
    if (rows - m == 1) {
      tile(m, Lanes<1>{});
      m += 1;
    } else if (rows - m == 2) {
      tile(m, Lanes<2>{});
      m += 2;
    } else {
      tile(m, Lanes<4>{});
      m += 4;
    }
  }
}

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

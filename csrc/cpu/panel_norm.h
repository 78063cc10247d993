// The norm before a feed-forward block: of a strip, and of one row.
#pragma once

#include "panel_tile.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

// Every lane is a token: the norm runs down the places.
template <class T>
void norm_strip(const PanelFfn& args, int64_t vectors, float* strip) {
  const int64_t d = args.inputs;
  const T* scale = static_cast<const T*>(args.norm_weight);
  const T* shift = static_cast<const T*>(args.norm_bias);
  for (int64_t v = 0; v < vectors; ++v) {
    float* column = strip + v * W;
    // Four sums shorten the chain of roundings.
    auto sum_of = [&](auto term) __attribute__((always_inline)) {
      vf sum[4] = {};
      int64_t j = 0;
      for (; j + 4 <= d; j += 4) {
#pragma GCC unroll 4
        for (int u = 0; u < 4; ++u) sum[u] = term(load(column + (j + u) * kStrip), sum[u]);
      }
      for (; j < d; ++j) sum[0] = term(load(column + j * kStrip), sum[0]);
      return (sum[0] + sum[1]) + (sum[2] + sum[3]);
    };
    const vf count = splat(static_cast<float>(d));
    vf mean{};
    if (args.norm == PanelNorm::kLayerNorm) {
      mean = sum_of([](vf x, vf sum) __attribute__((always_inline)) { return sum + x; }) / count;
    }
    const vf squares = sum_of([mean](vf x, vf sum) __attribute__((always_inline)) {
      return fma(x - mean, x - mean, sum);
    });
    vf factor = squares / count + splat(args.eps);
    for (int i = 0; i < W; ++i) factor[i] = 1.0f / std::sqrt(factor[i]);
    for (int64_t j = 0; j < d; ++j) {
      vf x = (load(column + j * kStrip) - mean) * factor;
      if (scale != nullptr) x *= splat(to_float(scale + j));
      if (shift != nullptr) x += splat(to_float(shift + j));
      store(column + j * kStrip, x);
    }
  }
}

// The same of one row.
template <class T>
void norm_row(const PanelFfn& args, float* row) {
  const int64_t d = args.inputs;
  const T* scale = static_cast<const T*>(args.norm_weight);
  const T* shift = static_cast<const T*>(args.norm_bias);
  auto sum_of = [&](auto term) __attribute__((always_inline)) {
    vf sum[4] = {};
    int64_t j = 0;
    for (; j + 4 * W <= d; j += 4 * W) {
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) sum[u] += term(load(row + j + u * W));
    }
    for (; j + W <= d; j += W) sum[0] += term(load(row + j));
    float last = 0.0f;
    for (; j < d; ++j) last += term(splat(row[j]))[0];
    return horizontal_sum((sum[0] + sum[1]) + (sum[2] + sum[3])) + last;
  };
  const float count = static_cast<float>(d);
  float mean = 0.0f;
  if (args.norm == PanelNorm::kLayerNorm) {
    mean = sum_of([](vf x) __attribute__((always_inline)) { return x; }) / count;
  }
  const float squares = sum_of([mean](vf x) __attribute__((always_inline)) {
    return (x - splat(mean)) * (x - splat(mean));
  });
  const vf factor = splat(1.0f / std::sqrt(squares / count + args.eps));
  for_each_vector(d, [&](int64_t j, int64_t n) {
    vf x = (load_some(row + j, n) - splat(mean)) * factor;
    if (scale != nullptr) x *= load_some(scale + j, n);
    if (shift != nullptr) x += load_some(shift + j, n);
    store_some(row + j, x, n);
  });
}

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

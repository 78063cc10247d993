// The inner loops of attention: scores of a tile of keys, their softmax, the weighted values.
//
// Every score and every sum of values runs through one accumulator in one order, whatever the tile
// that holds it: a row's result does not depend on the rows that share its loads.
#pragma once

#include <cmath>

#include "dot_panel.h"
#include "vector_exp.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

// Keys whose scores are held at once.
inline constexpr int kKeyBlock = 64;
// Sums that a tile holds in registers.
inline constexpr int kScoreSums = W;
inline constexpr int kValueRows = W == 16 ? 8 : 4;
inline constexpr int kValueSums = W == 16 ? 16 : 8;

// [W] vectors become one that holds their sums, in order.
LB_INLINE vf sums_of(const vf* v) {
#if defined(__AVX512F__)
#define LB_LOW(a, b) \
  __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
#define LB_HIGH(a, b) \
  __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31)
#define LB_EVEN(a, b) \
  __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define LB_ODD(a, b) \
  __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
#elif defined(__AVX2__)
#define LB_LOW(a, b) __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13)
#define LB_HIGH(a, b) __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15)
#define LB_EVEN(a, b) __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13)
#define LB_ODD(a, b) __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15)
#else
#define LB_LOW(a, b) __builtin_shufflevector(a, b, 0, 4, 1, 5)
#define LB_HIGH(a, b) __builtin_shufflevector(a, b, 2, 6, 3, 7)
#define LB_EVEN(a, b) __builtin_shufflevector(a, b, 0, 1, 4, 5)
#define LB_ODD(a, b) __builtin_shufflevector(a, b, 2, 3, 6, 7)
#endif
  // Four vectors at a time until each lane of 128 bits holds four sums of its own part.
  vf quad[W / 4];
#pragma GCC unroll 4
  for (int i = 0; i < W / 4; ++i) {
    const vf* a = v + 4 * i;
    const vf left = LB_LOW(a[0], a[1]) + LB_HIGH(a[0], a[1]);
    const vf right = LB_LOW(a[2], a[3]) + LB_HIGH(a[2], a[3]);
    quad[i] = LB_EVEN(left, right) + LB_ODD(left, right);
  }
#undef LB_LOW
#undef LB_HIGH
#undef LB_EVEN
#undef LB_ODD
#if defined(__AVX512F__)
  auto halves = [](vf a, vf b) __attribute__((always_inline)) {
    return reinterpret_cast<vf>(_mm512_shuffle_f32x4(a, b, 0x88)) +
           reinterpret_cast<vf>(_mm512_shuffle_f32x4(a, b, 0xdd));
  };
  return halves(halves(quad[0], quad[1]), halves(quad[2], quad[3]));
#elif defined(__AVX2__)
  return reinterpret_cast<vf>(_mm256_permute2f128_ps(quad[0], quad[1], 0x20)) +
         reinterpret_cast<vf>(_mm256_permute2f128_ps(quad[0], quad[1], 0x31));
#else
  return quad[0];
#endif
}

// Scores of G queries with the next few keys: scores[g * kKeyBlock + i] = q_g . key(i).
template <class T, int G, int keys, class KeyAt>
LB_INLINE void score_tile(KeyAt key_at, const float* q, int64_t width, int64_t d, float* scores) {
  vf acc[G * keys] = {};
  auto step = [&](int64_t j, auto load_key) __attribute__((always_inline)) {
    Pair k[keys];
#pragma GCC unroll 16
    for (int i = 0; i < keys; ++i) k[i] = load_key(key_at(i) + j);
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) {
      const vf first = load(q + g * width + j);
      const vf second = load(q + g * width + j + W);
#pragma GCC unroll 16
      for (int i = 0; i < keys; ++i) {
        acc[g * keys + i] = fma(k[i].second, second, fma(k[i].first, first, acc[g * keys + i]));
      }
    }
  };
  int64_t j = 0;
  for (; j + kPackBlock <= d; j += kPackBlock) {
    step(j, [](const T* p) __attribute__((always_inline)) { return load_pair(p); });
  }
  if (j < d) {
    step(j,
         [n = d - j](const T* p) __attribute__((always_inline)) { return load_pair_tail(p, n); });
  }
  float lane[G * keys];
#pragma GCC unroll 8
  for (int i = 0; i < G * keys; i += W) store(lane + i, sums_of(acc + i));
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g) {
    std::memcpy(scores + g * kKeyBlock, lane + g * keys, keys * sizeof(float));
  }
}

// Weighted values of `pairs` packed blocks at channel j, added to the rescaled state.
template <class T, int G, int pairs, class LoadPair>
LB_INLINE void value_pass(const T* values, int64_t stride, int64_t count, const float* weights,
                          const float* alpha, float* sums, int64_t width, LoadPair load_value) {
  vf acc[G][2 * pairs] = {};
  for (int64_t i = 0; i < count; ++i) {
    const T* row = values + i * stride;
    Pair v[pairs];
#pragma GCC unroll 8
    for (int p = 0; p < pairs; ++p) v[p] = load_value(row + p * kPackBlock);
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) {
      const vf weight = splat(weights[g * kKeyBlock + i]);
#pragma GCC unroll 8
      for (int p = 0; p < pairs; ++p) {
        acc[g][2 * p] = fma(weight, v[p].first, acc[g][2 * p]);
        acc[g][2 * p + 1] = fma(weight, v[p].second, acc[g][2 * p + 1]);
      }
    }
  }
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g) {
#pragma GCC unroll 16
    for (int p = 0; p < 2 * pairs; ++p) {
      float* to = sums + g * width + p * W;
      store(to, fma(load(to), splat(alpha[g]), acc[g][p]));
    }
  }
}

template <class T, int G>
LB_INLINE void add_values(const T* values, int64_t stride, int64_t count, int64_t d,
                          const float* weights, const float* alpha, float* sums, int64_t width) {
  constexpr int kPairs = kValueSums / (2 * G) > 4 ? 4 : kValueSums / (2 * G);
  auto whole = [](const T* p) __attribute__((always_inline)) { return load_pair(p); };
  int64_t j = 0;
  for (; j + kPairs * kPackBlock <= d; j += kPairs * kPackBlock) {
    value_pass<T, G, kPairs>(values + j, stride, count, weights, alpha, sums + j, width, whole);
  }
  for (; j + kPackBlock <= d; j += kPackBlock) {
    value_pass<T, G, 1>(values + j, stride, count, weights, alpha, sums + j, width, whole);
  }
  if (j < d) {
    value_pass<T, G, 1>(values + j, stride, count, weights, alpha, sums + j, width,
                        [n = d - j](const T* p)
                            __attribute__((always_inline)) { return load_pair_tail(p, n); });
  }
}

// Scores become weights exp(score - most); `alpha` is what the state so far must be scaled by.
LB_INLINE void softmax_block(float* scores, int64_t padded, float& most, float& total,
                             float& alpha) {
  vf best = splat(-INFINITY);
  for (int64_t i = 0; i < padded; i += W) {
    const vf s = load(scores + i);
    best = s > best ? s : best;
  }
  float lane[W];
  store(lane, best);
  float peak = most;
  for (int i = 0; i < W; ++i) peak = lane[i] > peak ? lane[i] : peak;
  // Nothing seen yet: any base does, but infinity less infinity is no number.
  const float base = peak == -INFINITY ? 0.0f : peak;
  vf sum = {};
  for (int64_t i = 0; i < padded; i += W) {
    const vf weight = vector_exp(load(scores + i) - splat(base));
    store(scores + i, weight);
    sum += weight;
  }
  store(lane, vector_exp(splat(most - base)));
  alpha = lane[0];
  total = total * alpha + horizontal_sum(sum);
  most = peak;
}

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

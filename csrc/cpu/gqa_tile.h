// Products of small tiles and the exponentials between them: the inner loops of sparse attention.
//
// Operands are words of 32 bits: a float, or (`pairs`) two bfloat16 numbers for the dot-product
// instruction, then half as many steps. Every sum runs through one accumulator in the order of the
// steps, whatever the tile that holds it.
#pragma once

#include <cmath>

#include "simd.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

// Query rows that share every load of a key or a value: with two vectors of sums to a row they fill
// the registers but for the operands.
inline constexpr int kRows = W == 16 ? 8 : 6;
// Keys of a panel: the lanes of a row's sums.
inline constexpr int kPanel = 2 * W;
// Keys whose scores are held at once.
inline constexpr int kWindow = 128;
inline constexpr int kWindowPanels = kWindow / kPanel;

template <class T>
inline constexpr bool kPairs = false;
#if defined(__AVX512BF16__)
template <>
inline constexpr bool kPairs<bf16> = true;
#endif

template <bool pairs>
LB_INLINE vf multiply_add(vf a, vf b, vf sum) {
#if defined(__AVX512BF16__)
  if constexpr (pairs) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
#endif
  return fma(a, b, sum);
}

// The second where either is no number.
LB_INLINE vf larger(vf a, vf b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#elif defined(__SSE2__)
  return _mm_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

LB_INLINE float largest_lane(vf v) {
#if defined(__AVX512F__)
  v = larger(v, reinterpret_cast<vf>(_mm512_shuffle_f32x4(v, v, 0x4e)));
  v = larger(v, reinterpret_cast<vf>(_mm512_shuffle_f32x4(v, v, 0xb1)));
  const __m128 low = _mm256_castps256_ps128(_mm512_castps512_ps256(v));
#elif defined(__AVX2__)
  const __m128 low = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
#endif
#if defined(__AVX2__)
  const __m128 two = _mm_max_ps(low, _mm_movehl_ps(low, low));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
#else
  const float a = v[0] > v[1] ? v[0] : v[1];
  const float b = v[2] > v[3] ? v[2] : v[3];
  return a > b ? a : b;
#endif
}

// 2^x for x <= 0, zero below 2^-126; NaN stays NaN. x = n + r with |r| <= 1/2, and a polynomial in
// r of least relative error: 3% of half a unit in the last place.
LB_INLINE vf power_of_two(vf x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: the nearest integer is in the low bits
  constexpr float kLeast = -126.0f;
  const vf bounded = larger(splat(kLeast), x);
  const vf shifted = bounded + splat(kRound);
  const vf r = bounded - (shifted - splat(kRound));
  vf p = splat(0.00015353362f);
  p = fma(p, r, splat(0.0013398875f));
  p = fma(p, r, splat(0.00961843692f));
  p = fma(p, r, splat(0.0555033237f));
  p = fma(p, r, splat(0.240226477f));
  p = fma(p, r, splat(0.693147182f));
  p = fma(p, r, splat(1.0f));
  const vf value =
      reinterpret_cast<vf>(reinterpret_cast<vu>(p) + (reinterpret_cast<vu>(shifted) << 23));
  return reinterpret_cast<vf>(reinterpret_cast<vi>(value) & ~(x < splat(kLeast)));
}

// Steps of a score that one accumulator takes; their sums are added, which is more exact than one
// long sum.
inline constexpr int64_t kScoreSteps = 32;

// Scores of a strip with a panel: q [steps, kRows], keys [steps, kPanel], scores [kRows, kWindow].
template <bool pairs>
LB_OUTLINE void score_panel(const float* q, const float* keys, int64_t steps, float scale,
                            float* scores) {
  for (int64_t from = 0; from < steps; from += kScoreSteps) {
    const int64_t stop = from + kScoreSteps < steps ? from + kScoreSteps : steps;
    vf sums[kRows][2] = {};
    for (int64_t k = from; k < stop; ++k) {
      const vf first = load(keys);
      const vf second = load(keys + W);
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) {
        const vf a = splat(q[m]);
        sums[m][0] = multiply_add<pairs>(a, first, sums[m][0]);
        sums[m][1] = multiply_add<pairs>(a, second, sums[m][1]);
      }
      q += kRows;
      keys += kPanel;
    }
    // Pairs are not scaled before the product.
    const vf factor = splat(scale);
    auto write = [&](auto sum) __attribute__((always_inline)) {
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 2
        for (int n = 0; n < 2; ++n) {
          float* to = scores + m * kWindow + n * W;
          store(to, sum(to, pairs ? sums[m][n] * factor : sums[m][n]));
        }
      }
    };
    if (from == 0) {
      write([](const float*, vf value) __attribute__((always_inline)) { return value; });
    } else {
      write([](const float* to, vf value)
                __attribute__((always_inline)) { return load(to) + value; });
    }
  }
}

// The panels of a window that a strip sees, and which of their keys.
struct Window {
  int64_t count;
  int64_t panel[kWindowPanels];
  int64_t begin[kWindowPanels];  // within the panel
  int64_t end[kWindowPanels];
};

// sums [kRows, stride], N vectors wide, become sums * alpha + weights * values.
template <bool pairs, int N>
LB_OUTLINE void value_tile(const float* weights, const Window& window, const float* values,
                           int64_t values_stride, const float* alpha, float* sums, int64_t stride) {
  constexpr int kKeys = pairs ? 2 : 1;
  vf acc[kRows][N] = {};
  for (int64_t i = 0; i < window.count; ++i) {
    const int64_t begin = window.begin[i] / kKeys;
    const int64_t end = (window.end[i] + kKeys - 1) / kKeys;
    const float* v = values + (window.panel[i] * (kPanel / kKeys) + begin) * values_stride;
    const float* p = weights + i * (kPanel / kKeys) + begin;
    for (int64_t k = begin; k < end; ++k) {
      vf b[N];
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) b[n] = load(v + n * W);
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) {
        const vf a = splat(p[m * kWindow]);
#pragma GCC unroll 2
        for (int n = 0; n < N; ++n) acc[m][n] = multiply_add<pairs>(a, b[n], acc[m][n]);
      }
      v += values_stride;
      ++p;
    }
  }
  // A window's sum is joined at its end, which is more exact than one long sum.
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
    const vf factor = splat(alpha[m]);
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) {
      float* to = sums + m * stride + n * W;
      store(to, fma(load(to), factor, acc[m][n]));
    }
  }
}

// What is known of a strip's rows so far; a logit is a power of two.
struct Softmax {
  float peak[kRows];       // the largest logit, or -inf
  float total[kRows * W];  // lanes of the sum of 2^(logit - peak)
};

// Scores [kRows, kWindow] of `panels` panels, logits once `factor` > 0 has scaled them, become
// weights, for pairs packed to half the width; alpha is what the sums so far must be scaled by.
template <bool pairs>
LB_OUTLINE void soften(float* scores, int64_t panels, float factor, Softmax& state, float* alpha) {
  constexpr int kLanes = (kRows + W - 1) / W * W;
  float base[kLanes] = {};
  float drop[kLanes] = {};
  for (int m = 0; m < kRows; ++m) {
    const float* row = scores + m * kWindow;
    vf best = splat(-INFINITY);
    for (int64_t i = 0; i < panels * kPanel; i += kPanel) {
      best = larger(best, larger(load(row + i), load(row + i + W)));
    }
    const float most = largest_lane(best) * factor;
    const float peak = most > state.peak[m] ? most : state.peak[m];
    // Nothing seen yet: any base does, but infinity less infinity is no number.
    base[m] = peak == -INFINITY ? 0.0f : peak;
    drop[m] = state.peak[m] - base[m];
    state.peak[m] = peak;
  }
  for (int m = 0; m < kLanes; m += W) store(alpha + m, power_of_two(load(drop + m)));
  for (int m = 0; m < kRows; ++m) {
    float* row = scores + m * kWindow;
    float* to = row;
    const vf from = splat(-base[m]);
    const vf times = splat(factor);
    vf sum = load(state.total + m * W) * splat(alpha[m]);
    for (int64_t i = 0; i < panels * kPanel; i += kPanel) {
      const vf first = power_of_two(fma(load(row + i), times, from));
      const vf second = power_of_two(fma(load(row + i + W), times, from));
      sum += first + second;
#if defined(__AVX512BF16__)
      if constexpr (pairs) {
        const __m512bh packed = _mm512_cvtne2ps_pbh(second, first);
        std::memcpy(to, &packed, sizeof packed);
        to += W;
        continue;
      }
#endif
      store(to, first);
      store(to + W, second);
      to += kPanel;
    }
    store(state.total + m * W, sum);
  }
}

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

// Probabilities as integers: the mass of p is round(p * 2^51), p clamped to [0, 2], NaN as 0.
//
// Integer sums have no rounding, so their order is free: every level, and every other backend,
// gets the same sums and draws the same tokens. Adding 2^52 to p * 2^51 rounds it (to nearest,
// ties to even) and leaves the integer in the low bits of the double, also for the sum 2^53.
#pragma once

#include "simd.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

inline constexpr double kUnit = 0x1p51;
inline constexpr double kAlign = 0x1p52;
inline constexpr uint64_t kAlignBits = 0x4330000000000000;

typedef double vd __attribute__((vector_size(W * 4)));
typedef uint64_t vm __attribute__((vector_size(W * 4)));

// W numbers in double precision.
struct Doubles {
  vd low;
  vd high;
};

LB_INLINE Doubles widen(vf v) {
#if defined(__AVX512F__)
  return {_mm512_cvtps_pd(_mm512_castps512_ps256(v)),
          _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1))};
#elif defined(__AVX2__)
  return {_mm256_cvtps_pd(_mm256_castps256_ps128(v)), _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1))};
#elif defined(__SSE2__)
  return {_mm_cvtps_pd(v), _mm_cvtps_pd(_mm_movehl_ps(v, v))};
#else
  return {vd{v[0], v[1]}, vd{v[2], v[3]}};
#endif
}

// The instructions give their second operand where the first is NaN.
LB_INLINE vf clamp_probability(vf p) {
#if defined(__AVX512F__)
  return _mm512_min_ps(_mm512_max_ps(p, splat(0.0f)), splat(2.0f));
#elif defined(__AVX2__)
  return _mm256_min_ps(_mm256_max_ps(p, splat(0.0f)), splat(2.0f));
#else
  const vf positive = p > splat(0.0f) ? p : splat(0.0f);
  return positive < splat(2.0f) ? positive : splat(2.0f);
#endif
}

// The masses of clamped probabilities as doubles, and as integers on top of kAlignBits.
// The product is exact, so that a fused sum gives the same.
LB_INLINE vd aligned(vd p) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(p, vd{} + kUnit, vd{} + kAlign);
#elif defined(__AVX2__)
  return _mm256_fmadd_pd(p, vd{} + kUnit, vd{} + kAlign);
#else
  return p * kUnit + kAlign;
#endif
}
LB_INLINE vd mass_as_double(vd p) { return aligned(p) - kAlign; }

// What masses are divided by: a row without any, which is no distribution, counts as zeros.
LB_INLINE double divisor(int64_t total) { return total > 0 ? static_cast<double>(total) : 1.0; }

// The mass of element v of a row.
template <class T>
LB_INLINE int64_t mass_at(const T* row, int64_t v) {
  const vf p = clamp_probability(load_tail(row + v, 1));
  return static_cast<int64_t>(static_cast<double>(p[0]) * kUnit + kAlign - kAlign);
}

// Clamped probabilities of a row, vector by vector.
template <class T>
struct Probabilities {
  const T* row;

  LB_INLINE Doubles operator()(int64_t j, int64_t n) const {
    return widen(clamp_probability(load_n(row + j, n)));
  }
};

// The same, noting in `wrong` where a number is negative or NaN.
template <class T>
struct CheckedProbabilities {
  const T* row;
  vi* wrong;

  LB_INLINE Doubles operator()(int64_t j, int64_t n) const {
    const vf p = load_n(row + j, n);
    *wrong |= ~(p >= splat(0.0f));
    return widen(clamp_probability(p));
  }
};

// max(p / sum p - q / sum q, 0) of two rows. Divisions, not products with a reciprocal: a product
// and a difference might be contracted elsewhere, and then round differently.
template <class T>
struct Residual {
  Probabilities<T> p;
  Probabilities<T> q;
  double p_total;
  double q_total;

  LB_INLINE vd part(vd a, vd b) const {
    const vd rest = mass_as_double(a) / p_total - mass_as_double(b) / q_total;
    const vd positive = rest > 0.0 ? rest : vd{};
    return positive < 2.0 ? positive : vd{} + 2.0;
  }
  LB_INLINE Doubles operator()(int64_t j, int64_t n) const {
    const Doubles a = p(j, n);
    const Doubles b = q(j, n);
    return {part(a.low, b.low), part(a.high, b.high)};
  }
};

// The mass of `source` between two columns.
template <class Source>
LB_INLINE int64_t sum_of_masses(const Source& source, int64_t begin, int64_t end) {
  vm sums[4] = {};
  int64_t vectors = 0;
  int64_t j = begin;
  for (; j + 2 * W <= end; j += 2 * W, vectors += 2) {
#pragma GCC unroll 2
    for (int u = 0; u < 2; ++u) {
      const Doubles p = source(j + u * W, W);
      sums[2 * u] += reinterpret_cast<vm>(aligned(p.low));
      sums[2 * u + 1] += reinterpret_cast<vm>(aligned(p.high));
    }
  }
  for (; j < end; j += W, ++vectors) {
    const Doubles p = source(j, end - j < W ? end - j : W);
    sums[0] += reinterpret_cast<vm>(aligned(p.low));
    sums[1] += reinterpret_cast<vm>(aligned(p.high));
  }
  const vm sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  uint64_t total = 0 - static_cast<uint64_t>(vectors * W) * kAlignBits;
  for (int i = 0; i < W / 2; ++i) total += sum[i];
  return static_cast<int64_t>(total);
}

// A row's mass in at most kMostBlocks parts, so that a draw is looked for in one of them only.
inline constexpr int64_t kMostBlocks = 256;

struct BlockMasses {
  int64_t cols;
  int64_t block;
  int64_t total;
  int64_t sums[kMostBlocks];
};

template <class Source>
LB_OUTLINE void fill_block_masses(const Source& source, int64_t cols, BlockMasses& masses) {
  masses.cols = cols;
  masses.block = ((cols + kMostBlocks - 1) / kMostBlocks + 63) / 64 * 64;
  uint64_t total = 0;
  for (int64_t k = 0; k * masses.block < cols; ++k) {
    const int64_t end = (k + 1) * masses.block;
    masses.sums[k] = sum_of_masses(source, k * masses.block, end < cols ? end : cols);
    total += static_cast<uint64_t>(masses.sums[k]);
  }
  masses.total = static_cast<int64_t>(total);
}

// floor(u * total), an integer of [0, total); 0 where total is not positive.
LB_INLINE int64_t draw(double u, int64_t total) {
  const double clamped = u > 0.0 ? (u < 1.0 ? u : 1.0) : 0.0;
  const double at = clamped * static_cast<double>(total);
  const int64_t last = total > 0 ? total - 1 : 0;
  if (!(at > 0.0)) return 0;
  return at < static_cast<double>(last) ? static_cast<int64_t>(at) : last;
}

// The first token whose cumulative mass exceeds `bound`, without the tokens for which
// `is_out(token)` holds; `masses` already lacks these.
template <class Source, class IsOut>
LB_INLINE int64_t token_at(const Source& source, const BlockMasses& masses, int64_t bound,
                           IsOut is_out) {
  int64_t left = bound;
  for (int64_t k = 0; k * masses.block < masses.cols; ++k) {
    if (left >= masses.sums[k]) {
      left -= masses.sums[k];
      continue;
    }
    const int64_t begin = k * masses.block;
    const int64_t end = begin + masses.block < masses.cols ? begin + masses.block : masses.cols;
    for (int64_t j = begin; j < end; j += W) {
      const int64_t n = end - j < W ? end - j : W;
      const Doubles p = source(j, n);
      uint64_t lane[W];
      const vd low = aligned(p.low);
      const vd high = aligned(p.high);
      std::memcpy(lane, &low, sizeof low);
      std::memcpy(lane + W / 2, &high, sizeof high);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t mass = static_cast<int64_t>(lane[i] - kAlignBits);
        if (mass == 0 || is_out(j + i)) continue;
        if (left < mass) return j + i;
        left -= mass;
      }
    }
  }
  return masses.cols - 1;
}

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

// What the kernels over panels share: conversions, transposition, norms, activations.
#pragma once

#include <cmath>

#include "simd.h"
#include "vector_math.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

template <bool first, class A, class B>
struct Choice {
  using type = A;
};
template <class A, class B>
struct Choice<false, A, B> {
  using type = B;
};
template <bool first, class A, class B>
using Select = typename Choice<first, A, B>::type;

template <class T>
inline constexpr bool kIsBf16 = false;
template <>
inline constexpr bool kIsBf16<bf16> = true;

#if defined(__AVX512F__)
LB_INLINE __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
#endif

// The first n elements; missing lanes are zero. Unlike load_n it is inline where masks are cheap:
// narrow panels have nothing but tails.
LB_INLINE vf load_some(const float* p, int64_t n) {
#if defined(__AVX512F__)
  return _mm512_maskz_loadu_ps(first_lanes(n), p);
#else
  return load_n(p, n);
#endif
}
template <class T>
LB_INLINE vf load_some(const T* p, int64_t n) {
#if defined(__AVX512F__)
  const __m256i bits = _mm256_maskz_loadu_epi16(first_lanes(n), p);
  return load(reinterpret_cast<const T*>(&bits));
#else
  return load_n(p, n);
#endif
}

LB_INLINE void store_some(float* p, vf v, int64_t n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, first_lanes(n), v);
#else
  store_n(p, v, n);
#endif
}
template <class T>
LB_INLINE void store_some(T* p, vf v, int64_t n) {
#if defined(__AVX512F__)
  _mm256_mask_storeu_epi16(p, first_lanes(n), to_narrow(v, T{}));
#else
  store_n(p, v, n);
#endif
}

template <class T>
LB_INLINE float to_float(const T* p) {
  return load_some(p, 1)[0];
}
LB_INLINE float to_float(const float* p) { return *p; }

template <class T>
LB_INLINE void to_floats(const T* from, int64_t n, float* to) {
  for_each_vector(n, [&](int64_t j, int64_t count) __attribute__((always_inline)) {
    store_some(to + j, load_some(from + j, count), count);
  });
}

// Numbers at the listed channels, zeros without them, and zeros up to `room`.
template <class T>
LB_INLINE void gather_floats(const void* from, const int64_t* channels, int64_t begin, int64_t end,
                             int64_t room, float* to) {
  const T* values = static_cast<const T*>(from);
  for (int64_t i = 0; i < room; ++i) {
    const bool present = values != nullptr && begin + i < end;
    to[i] =
        present ? to_float(values + (channels == nullptr ? begin + i : channels[begin + i])) : 0.0f;
  }
}

// Lanes of one stage of a transposition.
template <int... lane>
struct Lanes {};
#if defined(__AVX512F__)
using AllLanes = Lanes<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15>;
#elif defined(__AVX2__)
using AllLanes = Lanes<0, 1, 2, 3, 4, 5, 6, 7>;
#else
using AllLanes = Lanes<0, 1, 2, 3>;
#endif

// Swaps the lanes of `a` whose bit is set with those of `b` whose bit is not.
template <int bit, int... lane>
LB_INLINE void exchange(vf& a, vf& b, Lanes<lane...>) {
  const vf low = __builtin_shufflevector(a, b, ((lane & bit) == 0 ? lane : W + lane - bit)...);
  const vf high = __builtin_shufflevector(a, b, ((lane & bit) == 0 ? lane + bit : W + lane)...);
  a = low;
  b = high;
}

template <int bit>
LB_INLINE void transpose_stage(vf (&v)[W]) {
  if constexpr (bit < W) {
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) {
      if ((i & bit) == 0) exchange<bit>(v[i], v[i + bit], AllLanes{});
    }
    transpose_stage<2 * bit>(v);
  }
}

LB_INLINE void transpose(vf (&v)[W]) { transpose_stage<1>(v); }

// Listed weights of so many bytes do not stay in the second-level cache.
inline constexpr int64_t kFarBytes = int64_t{1} << 20;

// Brings the listed parts of a weight's row into that cache.
template <class T>
LB_OUTLINE void bring_row(const T* row, const PanelRun* runs, int64_t count) {
  for (const PanelRun* run = runs; run != runs + count; ++run) {
    const char* begin = reinterpret_cast<const char*>(row + run->weight);
    const int64_t bytes = run->count * static_cast<int64_t>(sizeof(T));
    for (int64_t b = 0; b < bytes; b += 64) prefetch(begin + b);
  }
}

// Calls body(column, place, n) for what runs have of places [begin, end), n <= W at a time.
template <class Body>
LB_INLINE void for_each_clipped(const PanelRun* runs, int64_t count, int64_t begin, int64_t end,
                                Body body) {
  for (const PanelRun* run = runs; run != runs + count; ++run) {
    const int64_t from = run->place > begin ? run->place : begin;
    const int64_t stop = run->place + run->count;
    const int64_t to = stop < end ? stop : end;
    for (int64_t place = from; place < to; place += W) {
      body(run->weight + (place - run->place), place, to - place < W ? to - place : W);
    }
  }
}

// x Phi(x), the GELU by erf (Hendrycks & Gimpel, 2016). Phi(x) - 1/2 = x P(x^2) / Q(x^2) for
// |x| < 5.5, to 5e-8 of itself: a minimax fit; beyond, Phi is 0 or 1. With the roundings Phi is
// within 2^-23 everywhere.
LB_INLINE vf vector_gelu(vf x) {
  constexpr float kEnd = 5.5f;
  const vf u = x * x;
  vf p = splat(1.12001316e-10f);
  p = fma(p, u, splat(-2.17256894e-08f));
  p = fma(p, u, splat(3.09203091e-06f));
  p = fma(p, u, splat(1.58864975e-04f));
  p = fma(p, u, splat(4.43895957e-03f));
  p = fma(p, u, splat(3.48666065e-02f));
  p = fma(p, u, splat(3.98942262e-01f));
  vf q = splat(5.82641295e-05f);
  q = fma(q, u, splat(1.76613048e-03f));
  q = fma(q, u, splat(2.84727979e-02f));
  q = fma(q, u, splat(2.54063518e-01f));
  q = fma(q, u, splat(1.0f));
  vf phi = fma(x, p / q, splat(0.5f));
  phi = x > splat(kEnd) ? splat(1.0f) : phi;
  phi = x < splat(-kEnd) ? vf{} : phi;
  return x * phi;
}

// x / (1 + exp(-2 s)), s = sqrt(2 / pi) (x + 0.044715 x^3): the GELU by tanh, without tanh.
LB_INLINE vf vector_gelu_tanh(vf x) {
  const vf s =
      x * fma(x * x, splat(-2.0f * 0.7978845608f * 0.044715f), splat(-2.0f * 0.7978845608f));
  const vf e = vector_exp(s < vf{} ? s : -s);
  const vf one = splat(1.0f);
  return x * (s < vf{} ? one : e) / (one + e);
}

LB_INLINE vf vector_relu(vf x) { return x < vf{} ? vf{} : x; }

// Runs f(act) for the function of an activation.
template <class F>
LB_INLINE void dispatch_activation(Activation activation, F f) {
  switch (activation) {
    case Activation::kGelu:
      return f([](vf x) __attribute__((always_inline)) { return vector_gelu(x); });
    case Activation::kGeluTanh:
      return f([](vf x) __attribute__((always_inline)) { return vector_gelu_tanh(x); });
    case Activation::kRelu:
      return f([](vf x) __attribute__((always_inline)) { return vector_relu(x); });
    case Activation::kSilu:
      return f([](vf x) __attribute__((always_inline)) { return silu(x); });
    case Activation::kIdentity:
      return f([](vf x) __attribute__((always_inline)) { return x; });
  }
}

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

// Vectors of float32 for one instruction-set level: loads and stores convert, arithmetic is float.
//
// GCC/Clang vector extensions carry the arithmetic; intrinsics appear only where the extensions
// generate poor code: half-precision conversion and non-temporal stores. Everything has internal
// linkage. A weak symbol here would let the linker keep one level's code for all levels, and a
// baseline machine would meet instructions that it does not have.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.h"

#ifndef LEEBOARD_LEVEL
#error "simd.h belongs to sources that are compiled once per level, with LEEBOARD_LEVEL set"
#endif

namespace leeboard::LEEBOARD_LEVEL {
namespace {

#if defined(__AVX512F__)
inline constexpr int W = 16;
#elif defined(__AVX2__)
inline constexpr int W = 8;
#else
inline constexpr int W = 4;
#endif

typedef float vf __attribute__((vector_size(W * 4)));
typedef uint32_t vu __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef uint16_t vh __attribute__((vector_size(W * 2)));

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

#define LB_INLINE inline __attribute__((always_inline))

// Runs f(T{}) for the storage type T.
template <class F>
LB_INLINE void dispatch_type(DType dtype, F f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(float{});
    case DType::kBFloat16:
      return f(bf16{});
    case DType::kFloat16:
      return f(f16{});
  }
}

LB_INLINE vf splat(float a) { return a - vf{}; }

LB_INLINE vf fma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

// A fixed tree: halves are added until one lane is left.
LB_INLINE float horizontal_sum(vf v) {
  float lane[W];
  std::memcpy(lane, &v, sizeof v);
#pragma GCC unroll 4
  for (int half = W / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  }
  return lane[0];
}

template <class T>
LB_INLINE T load_bits(const void* p) {
  T v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// float16 by integer arithmetic, for levels without conversion instructions.
LB_INLINE vf half_to_float(vu h) {
  const vu sign = (h & 0x8000u) << 16;
  const vu magnitude = h & 0x7fffu;
  // Moves the exponent into place; the product with 2^112 rebiases it and normalises subnormals.
  vf value = reinterpret_cast<vf>(magnitude << 13) * splat(0x1p112f);
  const vi special = magnitude >= 0x7c00u;
  const vu infinite = reinterpret_cast<vu>(value) | 0x7f800000u;
  const vu bits = special ? infinite : reinterpret_cast<vu>(value);
  return reinterpret_cast<vf>(bits | sign);
}

LB_INLINE vu float_to_half(vf f) {
  const vu all = reinterpret_cast<vu>(f);
  const vu sign = all & 0x80000000u;
  const vu magnitude = all ^ sign;
  // Normal results: rebias the exponent and round to nearest even on the 13 dropped bits.
  const vu odd = (magnitude >> 13) & 1u;
  const vu normal = (magnitude + (0xc8000000u + 0xfffu) + odd) >> 13;
  // Subnormal results: adding 0.5 aligns the mantissa so that the addition itself rounds.
  const vf aligned = reinterpret_cast<vf>(magnitude) + splat(0.5f);
  const vu subnormal = reinterpret_cast<vu>(aligned) - 0x3f000000u;
  const vu infinite = (magnitude > 0x7f800000u) ? vu{} + 0x7e00u : vu{} + 0x7c00u;
  vu out = (magnitude < 0x38800000u) ? subnormal : normal;
  out = (magnitude >= 0x47800000u) ? infinite : out;
  return out | (sign >> 16);
}

LB_INLINE vu float_to_bf16(vf f) {
  const vu bits = reinterpret_cast<vu>(f);
  const vu rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const vu quiet = (bits >> 16) | 0x40u;
  return ((bits & 0x7fffffffu) > 0x7f800000u) ? quiet : rounded;
}

LB_INLINE vf load(const float* p) { return load_bits<vf>(p); }

LB_INLINE vf load(const bf16* p) {
#if defined(__AVX512F__)
  return reinterpret_cast<vf>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_bits<__m256i>(p)), 16));
#elif defined(__AVX2__)
  return reinterpret_cast<vf>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_bits<__m128i>(p)), 16));
#else
  return reinterpret_cast<vf>(__builtin_convertvector(load_bits<vh>(p), vu) << 16);
#endif
}

LB_INLINE vf load(const f16* p) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(load_bits<__m256i>(p));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(load_bits<__m128i>(p));
#else
  return half_to_float(__builtin_convertvector(load_bits<vh>(p), vu));
#endif
}

// 2 W elements as two vectors. For bfloat16 these are the even and the odd elements: a shift and a
// mask of 32-bit words take them apart, and no lane crosses another.
struct Pair {
  vf first;
  vf second;
};

LB_INLINE Pair load_pair(const float* p) { return {load(p), load(p + W)}; }
LB_INLINE Pair load_pair(const f16* p) { return {load(p), load(p + W)}; }
LB_INLINE Pair load_pair(const bf16* p) {
  const vu words = load_bits<vu>(p);
  return {reinterpret_cast<vf>(words << 16), reinterpret_cast<vf>(words & 0xffff0000u)};
}

LB_INLINE void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }

#if defined(__AVX512F__)
typedef __m256i narrow;
#elif defined(__AVX2__)
typedef __m128i narrow;
#else
typedef vh narrow;
#endif

LB_INLINE narrow to_narrow(vf v, bf16) {
#if defined(__AVX512F__)
#if defined(__AVX512BF16__)
  // The instruction takes subnormal values for zero.
  constexpr int kSubnormal = 0x20;
  if (__builtin_expect(_mm512_fpclass_ps_mask(v, kSubnormal) == 0, 1)) {
    return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v));
  }
#endif
  return _mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(float_to_bf16(v)));
#elif defined(__AVX2__)
  const __m256i wide = reinterpret_cast<__m256i>(float_to_bf16(v));
  return _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
#else
  return __builtin_convertvector(float_to_bf16(v), vh);
#endif
}

LB_INLINE narrow to_narrow(vf v, f16) {
#if defined(__AVX512F__)
  return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__)
  return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  return __builtin_convertvector(float_to_half(v), vh);
#endif
}

template <class T>
LB_INLINE void store(T* p, vf v) {
  const narrow n = to_narrow(v, T{});
  std::memcpy(p, &n, sizeof n);
}

// Rounds to the storage type and comes back.
LB_INLINE vf round_through(vf v, float) { return v; }
template <class T>
LB_INLINE vf round_through(vf v, T tag) {
  const narrow n = to_narrow(v, tag);
  return load(reinterpret_cast<const T*>(&n));
}

// Non-temporal stores go around the cache. p must be aligned to a whole vector of T.
LB_INLINE void stream(float* p, vf v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, v);
#elif defined(__AVX2__)
  _mm256_stream_ps(p, v);
#elif defined(__SSE2__)
  _mm_stream_ps(p, v);
#else
  store(p, v);
#endif
}

template <class T>
LB_INLINE void stream(T* p, vf v) {
#if defined(__AVX512F__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), to_narrow(v, T{}));
#elif defined(__AVX2__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), to_narrow(v, T{}));
#else
  store(p, v);
#endif
}

LB_INLINE void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// The last n < W elements of a row; missing lanes are zero. Out of line: they are rare, and every
// loop has them.
#define LB_OUTLINE __attribute__((noinline))

template <class T>
LB_OUTLINE vf load_tail(const T* p, int64_t n) {
  T lane[W] = {};
  std::memcpy(lane, p, static_cast<size_t>(n) * sizeof(T));
  return load(lane);
}

template <class T>
LB_OUTLINE void store_tail(T* p, vf v, int64_t n) {
  T lane[W];
  store(lane, v);
  std::memcpy(p, lane, static_cast<size_t>(n) * sizeof(T));
}

// Brings the cache line at p into the second-level cache. Past the end of an array it does nothing.
LB_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

template <class T>
LB_INLINE bool vector_aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % (W * sizeof(T)) == 0;
}

// Calls body(j, n) for every vector of a row: n == W, but for a shorter last one.
template <class Body>
LB_INLINE void for_each_vector(int64_t cols, Body body) {
  int64_t j = 0;
  for (; j + W <= cols; j += W) body(j, static_cast<int64_t>(W));
  if (j < cols) body(j, cols - j);
}

template <class T>
LB_INLINE vf load_n(const T* p, int64_t n) {
  return n == W ? load(p) : load_tail(p, n);
}

template <class T>
LB_INLINE void store_n(T* p, vf v, int64_t n) {
  if (n == W) {
    store(p, v);
  } else {
    store_tail(p, v, n);
  }
}

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

// How weights of each format come out of memory: as vectors of float32, a step at a time.
//
// A vector of 2 W bfloat16 weights is read as W words of 32 bits: a shift yields the even elements,
// a mask the odd ones, so that no lane ever crosses another. Activations for them are therefore
// stored as W even elements followed by W odd ones; the other formats arrive in their own order.
//
// A format F has kStep columns in a step of kStepBytes, which is one cache line where vectors are
// wide. open() reads what the vectors of a step share, vector(step, i) yields vector i of it, and
// row_scale() is the factor of a whole row. What is multiplied with is the exact value of the
// stored number: a nibble of 4 bits times a scale of 8 bits fits in float32.
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

// Copies n < size bytes and fills up with zeros.
template <int size>
LB_INLINE void load_tail_bytes(char* to, const char* from, int64_t n) {
#if defined(__AVX512BW__)
  static_assert(size % 64 == 0);
#pragma GCC unroll 2
  for (int at = 0; at < size; at += 64) {
    const int64_t left = n - at;
    const __mmask64 mask = left >= 64 ? ~__mmask64{0} : left <= 0 ? 0 : (__mmask64{1} << left) - 1;
    _mm512_storeu_si512(to + at, _mm512_maskz_loadu_epi8(mask, from + at));
  }
#else
  std::memset(to, 0, size);
  std::memcpy(to, from, static_cast<size_t>(n));
#endif
}

// The last n < 2 W elements of a row; missing ones are zero.
template <class T>
LB_INLINE Pair load_pair_tail(const T* p, int64_t n) {
  T lane[kPackBlock];
  load_tail_bytes<sizeof lane>(reinterpret_cast<char*>(lane), reinterpret_cast<const char*>(p),
                               n * static_cast<int64_t>(sizeof(T)));
  return load_pair(lane);
}

// float32 and float16.
template <class T>
struct Stored {
  using Step = const T*;
  static constexpr int kStep = 2 * W;
  static constexpr int kStepBytes = kStep * sizeof(T);
  LB_INLINE static int64_t columns(const WeightMatrix& weight) { return weight.cols; }
  LB_INLINE static int64_t bytes(int64_t columns) {
    return columns * static_cast<int64_t>(sizeof(T));
  }
  LB_INLINE static Step open(const char* p, const WeightMatrix&, int, int64_t) {
    return reinterpret_cast<const T*>(p);
  }
  LB_INLINE static vf vector(Step step, int i) { return load(step + i * W); }
  LB_INLINE static float row_scale(const WeightMatrix&, int64_t) { return 1.0f; }
};

using F32 = Stored<float>;
using F16 = Stored<f16>;

struct BF16 : Stored<bf16> {
  using Step = vu;
  LB_INLINE static Step open(const char* p, const WeightMatrix&, int, int64_t) {
    return load_bits<vu>(p);
  }
  LB_INLINE static vf vector(Step words, int i) {
    return reinterpret_cast<vf>(i == 0 ? words << 16 : words & 0xffff0000u);
  }
};

struct I8 {
  using Step = const char*;
  static constexpr int kStep = 4 * W;
  static constexpr int kStepBytes = kStep;
  LB_INLINE static int64_t columns(const WeightMatrix& weight) { return weight.cols; }
  LB_INLINE static int64_t bytes(int64_t columns) { return columns; }
  LB_INLINE static Step open(const char* p, const WeightMatrix&, int, int64_t) { return p; }
  LB_INLINE static vf vector(Step step, int i) {
#if defined(__AVX512F__)
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_bits<__m128i>(step + i * W)));
#elif defined(__AVX2__)
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(step + i * W));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
#else
    typedef int8_t vb __attribute__((vector_size(W)));
    return __builtin_convertvector(__builtin_convertvector(load_bits<vb>(step + i * W), vi), vf);
#endif
  }
  LB_INLINE static float row_scale(const WeightMatrix& weight, int64_t v) {
    return static_cast<const float*>(weight.scales)[v * weight.scale_stride];
  }
};

struct I4 {
  static constexpr int kStep = 128;
  static constexpr int kStepBytes = 64;
  // Groups are whole in memory, and activations beyond the last column are zero.
  LB_INLINE static int64_t columns(const WeightMatrix& weight) { return packed_width(weight.cols); }
  LB_INLINE static int64_t bytes(int64_t columns) { return columns / 2; }
  LB_INLINE static float row_scale(const WeightMatrix&, int64_t) { return 1.0f; }
  LB_INLINE static float group_scale(const WeightMatrix& weight, int v, int64_t j) {
    const auto* scales = static_cast<const uint16_t*>(weight.scales);
    const uint32_t bits = uint32_t{scales[v * weight.scale_stride + j / kStep]} << 16;
    return load_bits<float>(&bits);
  }
#if defined(__AVX512F__)
  // The sixteen values of a group, looked up by the low four bits of each word.
  struct Step {
    __m512i words;
    vf values;
  };
  LB_INLINE static Step open(const char* p, const WeightMatrix& weight, int v, int64_t j) {
    constexpr vf kLevels = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
    return {load_bits<__m512i>(p), kLevels * splat(group_scale(weight, v, j))};
  }
  LB_INLINE static vf vector(const Step& step, int i) {
    return _mm512_permutexvar_ps(_mm512_srli_epi32(step.words, static_cast<unsigned>(4 * i)),
                                 step.values);
  }
#else
  struct Step {
    const char* words;
    vf scale;
  };
  LB_INLINE static Step open(const char* p, const WeightMatrix& weight, int v, int64_t j) {
    return {p, splat(group_scale(weight, v, j))};
  }
  LB_INLINE static vf vector(const Step& step, int i) {
    constexpr int kParts = 16 / W;
    const vu words = load_bits<vu>(step.words + i % kParts * W * 4);
    const vu nibbles = words >> (4 * (i / kParts)) & 0xfu;
    return __builtin_convertvector(reinterpret_cast<vi>(nibbles) - 8, vf) * step.scale;
  }
#endif
};

// The matrix without its first v rows.
template <class F>
LB_INLINE WeightMatrix rows_from(WeightMatrix weight, int64_t v) {
  weight.data = static_cast<const char*>(weight.data) + v * weight.stride;
  if constexpr (__is_same(F, I8)) {
    weight.scales = static_cast<const float*>(weight.scales) + v * weight.scale_stride;
  } else if constexpr (__is_same(F, I4)) {
    weight.scales = static_cast<const uint16_t*>(weight.scales) + v * weight.scale_stride;
  }
  return weight;
}

// Runs f(F{}) for the type of a format.
template <class Body>
LB_INLINE void dispatch_format(WeightFormat format, Body body) {
  switch (format) {
    case WeightFormat::kFloat32:
      return body(F32{});
    case WeightFormat::kBFloat16:
      return body(BF16{});
    case WeightFormat::kFloat16:
      return body(F16{});
    case WeightFormat::kInt8:
      return body(I8{});
    case WeightFormat::kInt4:
      return body(I4{});
  }
}

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

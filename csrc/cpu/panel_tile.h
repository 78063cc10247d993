// Products of many tokens with weight rows as they lie: tokens are the lanes, weights are
// broadcast.
//
// No weight is packed or copied, so any list of rows or columns costs what it lists. A sum runs
// through one accumulator in the order of the places, whatever the tile, the block or the thread: a
// token's result does not depend on the others.
#pragma once

#include "level.h"
#include "panel_vector.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

// Tokens of a strip, and the weight rows whose sums are in registers at once.
inline constexpr int kTokenVectors = 2;
inline constexpr int64_t kStrip = kTokenVectors * W;
inline constexpr int kSums = W == 16 ? 8 : 4;

LB_INLINE int64_t whole_sums(int64_t rows) { return (rows + kSums - 1) / kSums * kSums; }

// Strips that are worked on together, so that a weight is read once for all of them.
struct Strips {
  int64_t token;   // the first
  int64_t tokens;  // all of them, or fewer in the last strip

  LB_INLINE int64_t count() const { return (tokens + kStrip - 1) / kStrip; }
  LB_INLINE int64_t tokens_in(int64_t s) const {
    return tokens - s * kStrip < kStrip ? tokens - s * kStrip : kStrip;
  }
  LB_INLINE int64_t vectors_in(int64_t s) const { return (tokens_in(s) + W - 1) / W; }
};

// A step of a product: a weight of float32, or two neighbours of bfloat16 (where an instruction
// multiplies pairs) that meet a word of two rounded values.
template <class Word>
inline constexpr int kStep = sizeof(Word) == 2 ? 2 : 1;

LB_INLINE vf multiply_step(const float* w, vf x, vf sum) { return fma(splat(*w), x, sum); }

LB_INLINE vf multiply_step([[maybe_unused]] const bf16* w, [[maybe_unused]] vf x, vf sum) {
#if defined(__AVX512BF16__)
  const __m512i pair = _mm512_set1_epi32(load_bits<int32_t>(w));
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(pair));
#else
  return sum;
#endif
}

// Steps whose products are added up before their sum joins that of the others: a chain of additions
// loses as many bits as it is long.
inline constexpr int64_t kChain = 64;

// y[r] (or start[r]) + the products of weight row r with x, for kSums rows r. x and y are [places,
// kStrip] and [kSums, kStrip]; x begins at the place `origin`.
template <class Word, int vectors>
LB_OUTLINE void strip_product(const Word* const* rows, const PanelRun* runs, int64_t run_count,
                              const float* x, int64_t origin, const float* start, float* y) {
  vf sum[kSums][vectors];
  const float* from = start;
  int64_t left = kChain;
  auto clear = [&]() __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int r = 0; r < kSums; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sum[r][v] = vf{};
    }
    left = kChain;
  };
  auto join = [&]() __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int r = 0; r < kSums; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) {
        float* at = y + r * kStrip + v * W;
        store(at, sum[r][v] + (from != nullptr ? splat(from[r]) : load(at)));
      }
    }
    from = nullptr;
  };
  clear();
  for (const PanelRun* run = runs; run != runs + run_count; ++run) {
    const Word* w[kSums];
#pragma GCC unroll 8
    for (int r = 0; r < kSums; ++r) w[r] = rows[r] + run->weight;
    const float* at = x + (run->place - origin) / kStep<Word> * kStrip;
    const int64_t steps = run->count / kStep<Word>;
    int64_t k = 0;
    while (k < steps) {
      const int64_t end = steps - k < left ? steps : k + left;
      left -= end - k;
      for (; k < end; ++k) {
        vf value[vectors];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) value[v] = load(at + k * kStrip + v * W);
#pragma GCC unroll 8
        for (int r = 0; r < kSums; ++r) {
#pragma GCC unroll 2
          for (int v = 0; v < vectors; ++v) {
            sum[r][v] = multiply_step(w[r] + k * kStep<Word>, value[v], sum[r][v]);
          }
        }
      }
      if (left == 0) {
        join();
        clear();
      }
    }
  }
  if (left != kChain || from != nullptr) join();
}

// The columns of a product: runs, and the places that they cover.
struct Columns {
  const PanelRun* runs;
  int64_t count;
  int64_t origin;
  int64_t places;
  bool ahead;  // whether the next weight rows are brought into the cache: they come from far
};

// y rows begin .. end - 1 of every strip: start, or what is there, plus weight x. Row r of y is the
// weight's row channels[r] (r, without channels). y has room for whole_sums(end - begin) rows and
// `start` for as many numbers, both from `begin`. `scratch` holds kSums * places floats where the
// weights must be converted.
template <class T, bool paired>
void rows_product(const ConstRows& weight, const int64_t* channels, int64_t begin, int64_t end,
                  const Columns& columns, const Strips& strips, const float* x, int64_t x_strip,
                  const float* start, float* y, int64_t y_strip, float* scratch) {
  constexpr bool kConverted = !paired && sizeof(T) == 2;
  using Word = Select<kConverted, float, T>;
  const T* data = static_cast<const T*>(weight.data);
  const PanelRun whole{0, columns.origin, columns.places};
  for (int64_t r = begin; r < end; r += kSums) {
    const Word* rows[kSums];
    for (int i = 0; i < kSums; ++i) {
      const int64_t place = r + i < end ? r + i : end - 1;
      const T* row = data + (channels == nullptr ? place : channels[place]) * weight.stride;
      if constexpr (kConverted) {
        float* to = scratch + i * columns.places;
        rows[i] = to;
        for (int64_t c = 0; c < columns.count; ++c) {
          const PanelRun& run = columns.runs[c];
          to_floats(row + run.weight, run.count, to + run.place - columns.origin);
        }
      } else {
        rows[i] = row;
      }
    }
    for (int64_t i = r + kSums; columns.ahead && i < end && i < r + 2 * kSums; ++i) {
      bring_row(data + (channels == nullptr ? i : channels[i]) * weight.stride, columns.runs,
                columns.count);
    }
    const PanelRun* runs = kConverted ? &whole : columns.runs;
    const int64_t count = kConverted ? 1 : columns.count;
    const float* from = start == nullptr ? nullptr : start + (r - begin);
    for (int64_t s = 0; s < strips.count(); ++s) {
      float* to = y + s * y_strip + (r - begin) * kStrip;
      const float* in = x + s * x_strip;
      if (strips.vectors_in(s) == 1) {
        strip_product<Word, 1>(rows, runs, count, in, columns.origin, from, to);
      } else {
        strip_product<Word, 2>(rows, runs, count, in, columns.origin, from, to);
      }
    }
  }
}

// Columns of rows of x become rows of a strip: column run.weight + j goes to place run.place + j.
template <class T>
LB_OUTLINE void load_strip(const ConstRows& x, int64_t token, int64_t tokens, const PanelRun* runs,
                           int64_t run_count, float* strip) {
  for (int64_t v = 0; v * W < tokens; ++v) {
    const T* first = static_cast<const T*>(x.data) + (token + v * W) * x.stride;
    const int64_t present = tokens - v * W < W ? tokens - v * W : W;
    for (const PanelRun* run = runs; run != runs + run_count; ++run) {
      for_each_vector(run->count, [&](int64_t j, int64_t n) {
        vf lane[W];
        for (int64_t t = 0; t < W; ++t) {
          lane[t] = t < present ? load_some(first + t * x.stride + run->weight + j, n) : vf{};
        }
        transpose(lane);
        float* to = strip + (run->place + j) * kStrip + v * W;
        for (int64_t i = 0; i < n; ++i) store(to + i * kStrip, lane[i]);
      });
    }
  }
}

// The way back: places [begin, end), whose rows `y` begins with, go to their columns of out.
template <class T>
LB_OUTLINE void store_strip(const float* y, int64_t begin, int64_t end, const PanelRun* runs,
                            int64_t run_count, int64_t token, int64_t tokens,
                            const ConstRows& residual, const Rows& out) {
  for (int64_t v = 0; v * W < tokens; ++v) {
    const int64_t row = token + v * W;
    T* to = static_cast<T*>(out.data) + row * out.stride;
    const T* add = static_cast<const T*>(residual.data);
    if (add != nullptr) add += row * residual.stride;
    const int64_t present = tokens - v * W < W ? tokens - v * W : W;
    for_each_clipped(runs, run_count, begin, end, [&](int64_t column, int64_t place, int64_t n) {
      vf lane[W];
      for (int64_t i = 0; i < W; ++i) {
        lane[i] = i < n ? load(y + (place + i - begin) * kStrip + v * W) : vf{};
      }
      transpose(lane);
      for (int64_t t = 0; t < present; ++t) {
        vf value = lane[t];
        if (add != nullptr) value += load_some(add + t * residual.stride + column, n);
        store_some(to + t * out.stride + column, value, n);
      }
    });
  }
}

// Rows 2 i and 2 i + 1 of a strip become row i of words that hold both, rounded.
LB_INLINE void pair_rows([[maybe_unused]] float* strip, [[maybe_unused]] int64_t rows,
                         [[maybe_unused]] int64_t vectors) {
#if defined(__AVX512BF16__)
  for (int64_t i = 0; i < rows / 2; ++i) {
    for (int64_t v = 0; v < vectors; ++v) {
      const float* from = strip + 2 * i * kStrip + v * W;
      const __m512i low = _mm512_cvtepu16_epi32(to_narrow(load(from), bf16{}));
      const __m512i high = _mm512_cvtepu16_epi32(to_narrow(load(from + kStrip), bf16{}));
      store(strip + i * kStrip + v * W,
            reinterpret_cast<vf>(_mm512_or_si512(low, _mm512_slli_epi32(high, 16))));
    }
  }
#endif
}

// Whether bfloat16 weights can be multiplied by pairs: the level has the instruction, and no pair
// is cut.
template <class T>
LB_INLINE bool takes_pairs([[maybe_unused]] const PanelRun* runs,
                           [[maybe_unused]] int64_t run_count, [[maybe_unused]] int64_t depth) {
#if defined(__AVX512BF16__)
  if constexpr (sizeof(T) == 2 && kIsBf16<T>) {
    for (int64_t i = 0; i < run_count; ++i) {
      if (runs[i].count % 2 != 0) return false;
    }
    return depth % 2 == 0;
  }
#endif
  return false;
}

// Strips of `floats` each that fit the second-level cache beside some weights, at most four.
LB_INLINE int64_t strips_at_once(int64_t floats) {
  constexpr int64_t kRoom = int64_t{160} << 10;
  const int64_t fit = kRoom / (floats > 0 ? floats : 1);
  return fit < 1 ? 1 : (fit > 4 ? 4 : fit);
}

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

// Attention of a few query rows over rows of a key-value cache, at memory speed.
//
// Queries wait in float32, scaled, zero-padded and in the order in which keys of type T arrive
// (`pack_query`); sums of values are kept in that order too and put right at the end
// (`finish_state`). A block of keys is taken in two strokes: first every score, then the values;
// while one half of a block is computed, the other is fetched. All rows share each load.
//
// A row's result depends on its own query and on the order of the keys, never on the rows beside
// it. States of disjoint ranges are joined by `merge_states`, in an order that the caller fixes.
#pragma once

#include "attend_tile.h"
#include "rope.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

inline constexpr int64_t kNoWindow = int64_t{1} << 62;

// Elements of a packed row of `d` channels.
LB_INLINE int64_t attend_width(int64_t d) { return (d + kPackBlock - 1) / kPackBlock * kPackBlock; }

// Running softmax of `rows` queries: the largest score, the sum of weights, the weighted values.
struct AttendState {
  float* most;   // [rows]
  float* total;  // [rows]
  float* sums;   // [rows, width]
  int64_t rows;
  int64_t width;
};

// Floats of a state of `rows` queries of `d` channels: whole cache lines, so that a state behind
// another is aligned as it is.
LB_INLINE int64_t attend_scratch_floats(int64_t rows, int64_t d) {
  return (rows * (attend_width(d) + 2) + 15) / 16 * 16;
}

// A state in the caller's memory, left as it is.
LB_INLINE AttendState attend_state_at(float* scratch, int64_t rows, int64_t d) {
  const int64_t width = attend_width(d);
  return {scratch + rows * width, scratch + rows * width + rows, scratch, rows, width};
}

// A state that has seen nothing. Without `sums` it can be merged into others, and no more.
LB_INLINE AttendState attend_begin(float* scratch, int64_t rows, int64_t d, bool sums = true) {
  const AttendState state = attend_state_at(scratch, rows, d);
  for (int64_t i = 0; sums && i < rows * state.width; ++i) state.sums[i] = 0.0f;
  for (int64_t r = 0; r < rows; ++r) {
    state.most[r] = -INFINITY;
    state.total[r] = 0.0f;
  }
  return state;
}

// Which keys a row sees. Key i of a range has the cache index origin + i; row r belongs to token
// r / group, whose index is first + r / group. Visible are indices up to the token's own, within
// the window or below `sinks`. With `mask`, instead: those whose byte is set, columns counted from
// the range's key 0.
struct Sight {
  int64_t origin = 0;
  int64_t first = 0;
  int64_t group = 1;
  int64_t window = kNoWindow;
  int64_t sinks = 0;
  const uint8_t* mask = nullptr;  // the first token's row
  int64_t mask_stride = 0;

  LB_INLINE bool sees(int64_t row, int64_t key) const {
    const int64_t token = row / group;
    if (mask != nullptr) return mask[token * mask_stride + key] != 0;
    const int64_t distance = first + token - origin - key;
    return distance >= 0 && (distance < window || origin + key < sinks);
  }
  // Whether every row of [row, row + rows) sees every key of [key, key + count).
  LB_INLINE bool all(int64_t row, int64_t rows, int64_t key, int64_t count) const {
    if (mask != nullptr) return false;
    const int64_t near = first + row / group - origin;
    const int64_t far = first + (row + rows - 1) / group - origin;
    const int64_t last = key + count - 1;
    return last <= near && (far - key < window || origin + last < sinks);
  }
  // Whether none of them sees any.
  LB_INLINE bool none(int64_t row, int64_t rows, int64_t key, int64_t count) const {
    if (mask != nullptr) return false;
    const int64_t near = first + row / group - origin;
    const int64_t far = first + (row + rows - 1) / group - origin;
    return key > far || (near - (key + count - 1) >= window && origin + key >= sinks);
  }
};

// One block of at most kKeyBlock keys for rows [row, row + G). `fetch` says whether this group of
// rows brings in the block's values and the next block's keys.
template <class T, int G>
LB_OUTLINE void attend_block(const AttendState& state, const float* q, int64_t row, const T* keys,
                             int64_t key_stride, const T* values, int64_t value_stride,
                             int64_t count, int64_t d, const Sight& sight, int64_t at, bool fetch) {
  constexpr int kKeys = G < kScoreSums ? kScoreSums / G : 1;
  static_assert(kKeyBlock % W == 0 && kKeyBlock % kKeys == 0 && G * kKeys % W == 0);
  float weights[G * kKeyBlock];
  float alpha[G];
  const float* packed = q + row * state.width;
  const int64_t bytes = d * static_cast<int64_t>(sizeof(T));
  const int64_t padded = (count + W - 1) / W * W;
  int64_t i = 0;
  for (; i + kKeys <= count; i += kKeys) {
    if (fetch) {
      for (int64_t n = i; n < i + kKeys; ++n) {
        const char* next = reinterpret_cast<const char*>(values + n * value_stride);
        for (int64_t b = 0; b < bytes; b += 64) prefetch(next + b);
      }
    }
    const T* first = keys + i * key_stride;
    score_tile<T, G, kKeys>([&](int n)
                                __attribute__((always_inline)) { return first + n * key_stride; },
                            packed, state.width, d, weights + i);
  }
  if (i < count) {
    // The last key stands in for those beyond it.
    score_tile<T, G, kKeys>(
        [&](int n) __attribute__((always_inline)) {
          return keys + (i + n < count ? i + n : count - 1) * key_stride;
        },
        packed, state.width, d, weights + i);
  }
  const bool all = sight.all(row, G, at, count);
  for (int g = 0; g < G; ++g) {
    float* scores = weights + g * kKeyBlock;
    for (int64_t n = count; n < padded; ++n) scores[n] = -INFINITY;
    for (int64_t n = 0; !all && n < count; ++n) {
      if (!sight.sees(row + g, at + n)) scores[n] = -INFINITY;
    }
    softmax_block(scores, padded, state.most[row + g], state.total[row + g], alpha[g]);
  }
  if (fetch) {
    for (int64_t n = 0; n < count; ++n) {
      const char* next = reinterpret_cast<const char*>(keys + (kKeyBlock + n) * key_stride);
      for (int64_t b = 0; b < bytes; b += 64) prefetch(next + b);
    }
  }
  float* sums = state.sums + row * state.width;
  constexpr int kRows = G < kValueRows ? G : kValueRows;
#pragma GCC unroll 2
  for (int g = 0; g < G; g += kRows) {
    add_values<T, kRows>(values, value_stride, count, d, weights + g * kKeyBlock, alpha + g,
                         sums + g * state.width, state.width);
  }
}

// Adds keys and values [begin, end) of a range to a state of packed queries `q` [rows, width]. A
// single row anywhere is a range of one.
template <class T>
LB_INLINE void attend_range(const AttendState& state, const float* q, const T* keys,
                            int64_t key_stride, const T* values, int64_t value_stride,
                            int64_t begin, int64_t end, int64_t d, const Sight& sight) {
  for (int64_t at = begin; at < end; at += kKeyBlock) {
    const int64_t count = end - at < kKeyBlock ? end - at : kKeyBlock;
    const T* k = keys + at * key_stride;
    const T* v = values + at * value_stride;
    bool fetch = true;
    auto rows = [&]<int G>(int64_t row) __attribute__((always_inline)) {
      if (sight.none(row, G, at, count)) return;
      attend_block<T, G>(state, q, row, k, key_stride, v, value_stride, count, d, sight, at, fetch);
      fetch = false;
    };
    int64_t row = 0;
    for (; row + 8 <= state.rows; row += 8) rows.template operator()<8>(row);
    if (row + 4 <= state.rows) {
      rows.template operator()<4>(row);
      row += 4;
    }
    if (row + 2 <= state.rows) {
      rows.template operator()<2>(row);
      row += 2;
    }
    if (row < state.rows) rows.template operator()<1>(row);
  }
}

// into = into and from, of disjoint keys.
LB_INLINE void merge_states(const AttendState& into, const AttendState& from) {
  for (int64_t r = 0; r < into.rows; ++r) {
    const float a = into.most[r];
    const float b = from.most[r];
    if (b == -INFINITY && from.total[r] == 0.0f) continue;
    const float most = b > a ? b : a;
    const float base = most == -INFINITY ? 0.0f : most;
    float lane[W];
    store(lane, vector_exp(splat(a - base)));
    const float keep = lane[0];
    store(lane, vector_exp(splat(b - base)));
    const float add = lane[0];
    float* sums = into.sums + r * into.width;
    const float* others = from.sums + r * from.width;
    for (int64_t j = 0; j < into.width; j += W) {
      store(sums + j, fma(load(sums + j), splat(keep), load(others + j) * splat(add)));
    }
    into.total[r] = into.total[r] * keep + from.total[r] * add;
    into.most[r] = most;
  }
}

// A query, rotated (`cos` null: as it is) and scaled, as attend_range takes it for keys of type T.
template <class T, class X>
LB_INLINE void pack_query(const X* x, int64_t d, const float* cos, const float* sin, float scale,
                          float* packed) {
  for (int64_t j = attend_width(d) - kPackBlock; j < attend_width(d); ++j) packed[j] = 0.0f;
  rotate_row(x, d, cos, sin, [&](int64_t i, vf value, int64_t n) {
    float lane[W];
    store(lane, value * splat(scale));
    for (int64_t e = 0; e < n; ++e) packed[packed_position<T>(i + e)] = lane[e];
  });
}

// A row's attention over keys of type T, rounded once.
template <class T, class Out>
LB_INLINE void finish_state(const AttendState& state, int64_t row, int64_t d, Out* out) {
  const float* sums = state.sums + row * state.width;
  const vf total = splat(state.total[row]);
  for (int64_t j = 0; j < d; j += kPackBlock) {
    float packed[kPackBlock];
    float lane[kPackBlock];
    store(packed, load(sums + j) / total);
    store(packed + W, load(sums + j + W) / total);
    for (int64_t e = 0; e < kPackBlock; ++e) lane[e] = packed[packed_position<T>(e)];
    for (int64_t e = 0; e < kPackBlock && j + e < d; e += W) {
      const int64_t n = d - j - e < W ? d - j - e : W;
      store_n(out + j + e, load(lane + e), n);
    }
  }
}

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

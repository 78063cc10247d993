// Keys, values and queries of sparse attention in the order in which its products meet them.
#pragma once

#include "gqa_common.h"
#include "gqa_tile.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

LB_INLINE int64_t panels_of(int64_t keys) { return (keys + kPanel - 1) / kPanel; }
LB_INLINE int64_t whole_vectors(int64_t d) { return (d + W - 1) / W * W; }

// Steps of a product over d channels.
template <bool pairs>
LB_INLINE int64_t steps_of(int64_t d) {
  return pairs ? (d + 1) / 2 : d;
}

// A key-value head of a segment. Keys that are padding are zeros.
struct PackedKeys {
  int64_t panels;
  float* keys;    // [panels, steps, kPanel]
  float* values;  // [panels * kPanel, stride]; pairs of keys: [panels * kPanel / 2, stride]
  int64_t stride;
  int32_t* seen;    // [panels * kPanel], all ones, or zero: padding; null: no padding
  int32_t* padded;  // [panels], whether a panel has padding
};

// Hands out parts of a block of memory, or (memory null) counts what they take.
struct Memory {
  float* at;
  int64_t used = 0;
  template <class T = float>
  LB_INLINE T* take(int64_t count) {
    const int64_t begin = used;
    used += whole_line((count * static_cast<int64_t>(sizeof(T)) + 3) / 4);
    return at == nullptr ? nullptr : reinterpret_cast<T*>(at + begin);
  }
};

// Values of float rows, back to back and whole vectors wide, are read where they are.
template <class T>
LB_INLINE bool values_in_place(const SparseGqa& op) {
  return sizeof(T) == sizeof(float) && op.padding == nullptr && op.d % W == 0 && op.v.row == op.d;
}

template <class T>
LB_INLINE PackedKeys packed_keys(const SparseGqa& op, int64_t segment, int64_t head,
                                 Memory& memory) {
  const Segment& of = op.segments[segment];
  PackedKeys packed{};
  packed.panels = panels_of(of.keys);
  const int64_t keys = packed.panels * kPanel;
  packed.keys = memory.take(keys * steps_of<kPairs<T>>(op.d));
  packed.stride = whole_vectors(op.d);
  if (values_in_place<T>(op)) {
    packed.values = reinterpret_cast<float*>(row_at<T>(op.v, of.batch, head, of.key));
  } else {
    packed.values = memory.take(keys * packed.stride / (kPairs<T> ? 2 : 1));
  }
  if (op.padding != nullptr) {
    packed.seen = memory.take<int32_t>(keys);
    packed.padded = memory.take<int32_t>(packed.panels);
  }
  return packed;
}

// Row i of a strip or panel [steps, width]: its words, `scale` times their channels.
template <class T, int width>
LB_INLINE void pack_words(const T* row, int64_t d, float scale, float* to) {
  if constexpr (kPairs<T>) {
    int64_t j = 0;
    for (; j + 2 <= d; j += 2) std::memcpy(to + j / 2 * width, row + j, sizeof(float));
    if (j < d) {
      const uint32_t last = row[j].bits;
      std::memcpy(to + j / 2 * width, &last, sizeof last);
    }
  } else {
    for_each_vector(d, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
      float lane[W];
      store(lane, load_n(row + j, n) * splat(scale));
      for (int64_t e = 0; e < n; ++e) to[(j + e) * width] = lane[e];
    });
  }
}

template <int width>
LB_INLINE void clear_words(int64_t steps, float* to) {
  for (int64_t j = 0; j < steps; ++j) to[j * width] = 0.0f;
}

// Two rows of values, or (pairs) the words of two keys; null rows are zeros.
template <class T>
LB_INLINE void pack_values(const T* first, const T* second, int64_t d, int64_t stride, float* to) {
  for_each_vector(d, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
    const vf a = first == nullptr ? vf{} : load_n(first + j, n);
    const vf b = second == nullptr ? vf{} : load_n(second + j, n);
    if constexpr (kPairs<T>) {
      // A bfloat16 number is the upper half of a float.
      store(to + j,
            reinterpret_cast<vf>((reinterpret_cast<vu>(a) >> 16) | reinterpret_cast<vu>(b)));
    } else {
      store(to + j, a);
      store(to + stride + j, b);
    }
  });
}

// Panels [first, first + count) of an item.
template <class T>
LB_OUTLINE void pack_panels(const SparseGqa& op, const Segment& segment, int64_t head,
                            int64_t first, int64_t count, const PackedKeys& packed) {
  const int64_t steps = steps_of<kPairs<T>>(op.d);
  const uint8_t* padding =
      op.padding == nullptr ? nullptr : op.padding + segment.batch * op.padding_batch + segment.key;
  auto value_row = [&](int64_t key) {
    const bool present = key < segment.keys && (padding == nullptr || padding[key] == 0);
    return present ? row_at<const T>(op.v, segment.batch, head, segment.key + key) : nullptr;
  };
  for (int64_t p = first; p < first + count; ++p) {
    float* keys = packed.keys + p * steps * kPanel;
    int32_t any = 0;
    for (int64_t i = 0; i < kPanel; ++i) {
      const int64_t key = p * kPanel + i;
      const bool present = key < segment.keys && (padding == nullptr || padding[key] == 0);
      if (present) {
        pack_words<T, kPanel>(row_at<const T>(op.k, segment.batch, head, segment.key + key), op.d,
                              1.0f, keys + i);
      } else {
        clear_words<kPanel>(steps, keys + i);
        any = 1;
      }
      if (packed.seen != nullptr) packed.seen[key] = present ? -1 : 0;
    }
    if (packed.padded != nullptr) packed.padded[p] = any;
    if (values_in_place<T>(op)) continue;
    constexpr int64_t kApart = kPairs<T> ? 1 : 2;
    for (int64_t i = 0; i < kPanel; i += 2) {
      const int64_t key = p * kPanel + i;
      pack_values<T>(value_row(key), value_row(key + 1), op.d, packed.stride,
                     packed.values + key / 2 * kApart * packed.stride);
    }
  }
}

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

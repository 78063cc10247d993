// The most peaked queries of each head: what TopU attention computes before it attends.
#pragma once

#include "gqa_forward.h"
#include "top_values.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

// Keys between two roundings of the values' mean: a sum of sums is more exact than one sum.
inline constexpr int64_t kMeanKeys = 32;

// What an item of TopU holds besides its packed keys.
struct PackedSample {
  int64_t count;   // sampled keys
  float* keys;     // [panels_of(count), steps, kPanel]
  float* mean;     // [whole_vectors(d)], of the values that are not padding
  float* visible;  // [1], how many these are
  float* peaked;   // [heads, queries], heads of the group that are active
};

template <class T>
LB_INLINE PackedSample packed_sample(const SparseGqaForward& args, int64_t segment, int64_t head,
                                     Memory& memory) {
  const SparseGqa& op = args.op;
  PackedSample packed{};
  const int64_t* sample = args.sample + segment * args.sample_most;
  while (packed.count < args.sample_most && sample[packed.count] >= 0) ++packed.count;
  packed.keys = memory.take(panels_of(packed.count) * kPanel * steps_of<kPairs<T>>(op.d));
  packed.mean = memory.take(whole_vectors(op.d));
  packed.visible = memory.take(1);
  packed.peaked = memory.take((op.head_offsets[head + 1] - op.head_offsets[head]) *
                              op.segments[segment].queries);
  return packed;
}

template <class T>
LB_OUTLINE void pack_sample(const SparseGqaForward& args, int64_t segment, int64_t head,
                            const PackedSample& packed) {
  const SparseGqa& op = args.op;
  const Segment& of = op.segments[segment];
  const int64_t steps = steps_of<kPairs<T>>(op.d);
  const int64_t* sample = args.sample + segment * args.sample_most;
  for (int64_t i = 0; i < panels_of(packed.count) * kPanel; ++i) {
    float* to = packed.keys + i / kPanel * steps * kPanel + i % kPanel;
    if (i < packed.count) {
      pack_words<T, kPanel>(row_at<const T>(op.k, of.batch, head, of.key + sample[i]), op.d, 1.0f,
                            to);
    } else {
      clear_words<kPanel>(steps, to);
    }
  }
  const uint8_t* padding =
      op.padding == nullptr ? nullptr : op.padding + of.batch * op.padding_batch + of.key;
  float visible = 0.0f;
  for (int64_t key = 0; key < of.keys; ++key) {
    if (padding == nullptr || padding[key] == 0) visible += 1.0f;
  }
  *packed.visible = visible;
  const vf share = splat(visible > 0.0f ? 1.0f / visible : 0.0f);
  for_each_vector(op.d, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
    vf mean = {};
    for (int64_t from = 0; from < of.keys; from += kMeanKeys) {
      vf part = {};
      for (int64_t key = from; key < least(from + kMeanKeys, of.keys); ++key) {
        if (padding != nullptr && padding[key] != 0) continue;
        part += load_n(row_at<const T>(op.v, of.batch, head, of.key + key) + j, n);
      }
      mean += part;
    }
    store(packed.mean + j, mean * share);
  });
}

// peaked[head][token] = max - mean of a query's logits with the sample, of a loaded block.
template <class T>
LB_INLINE void measure_block(const SparseGqa& op, const PackedSample& packed, int64_t queries,
                             int64_t first_row, int64_t heads, BlockRows& block) {
  constexpr bool pairs = kPairs<T>;
  const int64_t steps = steps_of<pairs>(op.d);
  for (int64_t s = 0; s < block.strips; ++s) {
    vf best[kRows];
    vf sum[kRows];
    for (int m = 0; m < kRows; ++m) {
      best[m] = splat(-INFINITY);
      sum[m] = vf{};
    }
    for (int64_t i = 0; i < packed.count; i += kPanel) {
      score_panel<pairs>(block.q + s * steps * kRows, packed.keys + i * steps, steps, op.scale,
                         block.scores);
      for (int m = 0; m < kRows; ++m) {
        for (int n = 0; n < 2; ++n) {
          const vi lane = load_bits<vi>(kLanes) + static_cast<int32_t>(i + n * W);
          const vf score = load(block.scores + m * kWindow + n * W);
          // Keys beyond the sample score zero.
          sum[m] += score;
          const vf shown = lane < static_cast<int32_t>(packed.count) ? score : splat(-INFINITY);
          best[m] = larger(best[m], shown);
        }
      }
    }
    for (int64_t m = 0; m < least(kRows, block.rows - s * kRows); ++m) {
      const int64_t row = first_row + s * kRows + m;
      const float mean = horizontal_sum(sum[m]) / static_cast<float>(packed.count);
      packed.peaked[row % heads * queries + row / heads] = largest_lane(best[m]) - mean;
    }
  }
}

// Writes which queries of a head are chosen, and the mean to all of its rows.
template <class T>
LB_INLINE void choose_queries(const SparseGqaForward& args, int64_t segment, int64_t head,
                              const PackedSample& packed, const float* peaked, float* value,
                              int64_t* index) {
  const SparseGqa& op = args.op;
  const Segment& of = op.segments[segment];
  const int64_t count = args.counts[segment];
  int64_t* chosen = args.chosen + (segment * args.query_heads + head) * args.chosen_most;
  int64_t held = 0;
  for (int64_t i = 0; count > 0 && i < of.queries; ++i) {
    keep_top(value, index, held, count, peaked[i], i);
  }
  int64_t written = 0;
  for (int64_t i = 0; held > 0 && i < of.queries; ++i) {
    const float least_kept = value[held - 1];
    if (beats(peaked[i], least_kept) || (!beats(least_kept, peaked[i]) && i <= index[held - 1])) {
      chosen[written++] = i;
    }
  }
  for (; written < args.chosen_most; ++written) chosen[written] = -1;
  const float lse = *packed.visible > 0.0f ? __builtin_logf(*packed.visible) : -INFINITY;
  for (int64_t i = 0; i < of.queries; ++i) {
    T* to = row_at<T>(args.out, of.batch, head, of.query + i);
    for_each_vector(op.d, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
      store_n(to + j, load(packed.mean + j), n);
    });
    if (args.lse != nullptr) {
      args.lse[(of.batch * args.query_heads + head) * args.queries + of.query + i] = lse;
    }
  }
}

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

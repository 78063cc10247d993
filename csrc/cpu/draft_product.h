// Matrix products of a draft's rows: activations in the order of each format, any number of rows.
#pragma once

#include "draft_work.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

LB_INLINE bool takes_split(const WeightMatrix& w) { return w.format == WeightFormat::kBFloat16; }

// Even elements of 2 W, then odd ones.
LB_INLINE void split_block(const float* from, float* to) {
  vi even;
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) even[i] = 2 * i;
  const vf a = load(from);
  const vf b = load(from + W);
  store(to, __builtin_shuffle(a, b, even));
  store(to + W, __builtin_shuffle(a, b, even + 1));
}

LB_INLINE void pack(const Packed& to, int64_t row, int64_t offset, const float* from, int64_t n,
                    bool natural, bool split) {
  if (natural) {
    std::memcpy(to.natural + row * to.stride + offset, from,
                static_cast<size_t>(n) * sizeof(float));
  }
  if (split) {
    float* at = to.split + row * to.stride;
    int64_t i = 0;
    if (offset % kPackBlock == 0) {
      for (; i + kPackBlock <= n; i += kPackBlock) split_block(from + i, at + offset + i);
    }
    for (; i < n; ++i) at[packed_position<bf16>(offset + i)] = from[i];
  }
}

// Rows of the first step of a tree are spread out, one a sequence.
LB_INLINE int64_t row_distance(const Step& step) { return step.sizes.beams / step.beams; }

// Calls visit(row, v, n, products) for the products of weight rows [begin, end) with `count` rows
// from the step's row `first` on; count is at most kLinearMaxRows.
template <class Visit>
LB_INLINE void multiply_rows(const Step& step, const WeightMatrix& weight, const Packed& x,
                             int64_t first, int64_t count, int64_t begin, int64_t end,
                             Visit visit) {
  const float* packed = takes_split(weight) ? x.split : x.natural;
  const int64_t apart = row_distance(step);
  float products[kLinearMaxRows * kPanelFeatures];
  multiply_panel(weight, packed + first * apart * x.stride, apart * x.stride, count, begin, end,
                 products, [&](int64_t v, int64_t n, const float* values) {
                   for (int64_t m = 0; m < count; ++m) {
                     visit((first + m) * apart, v, n, values + m * kPanelFeatures);
                   }
                 });
}

// Calls group(first, count) for the step's rows, at most kLinearMaxRows at a time.
template <class Group>
LB_INLINE void for_row_groups(const Step& step, Group group) {
  for (int64_t first = 0; first < step.rows(); first += kLinearMaxRows) {
    const int64_t left = step.rows() - first;
    group(first, left < kLinearMaxRows ? left : kLinearMaxRows);
  }
}

template <class Visit>
LB_INLINE void multiply(const Step& step, const WeightMatrix& weight, const Packed& x,
                        int64_t begin, int64_t end, Visit visit) {
  for_row_groups(step, [&](int64_t first, int64_t count) {
    multiply_rows(step, weight, x, first, count, begin, end, visit);
  });
}

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

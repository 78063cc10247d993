// Train-time-test attention: what a row's own keys of later steps add to sparse attention.
//
// The keys of step 0 are the business of sparse_gqa, forward and backward. Here are the diagonals:
// one key and one value a step, seen by one row. They join a row's running softmax before it is
// divided and rounded, so the result is that of one softmax, rounded once.
#include <cmath>

#include "gqa_common.h"
#include "level.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

inline constexpr int64_t kMostChannels = 256;

template <class A, class B>
LB_OUTLINE float dot(const A* a, const B* b, int64_t d) {
  vf sums[2] = {};
  int64_t j = 0;
  for (; j + 2 * W <= d; j += 2 * W) {
    sums[0] = fma(load(a + j), load(b + j), sums[0]);
    sums[1] = fma(load(a + j + W), load(b + j + W), sums[1]);
  }
  for (; j < d; j += W) {
    const int64_t n = least(W, d - j);
    sums[0] = fma(load_n(a + j, n), load_n(b + j, n), sums[0]);
  }
  return horizontal_sum(sums[0] + sums[1]);
}

// to += factor * row, whole vectors of `to`.
template <class T>
LB_OUTLINE void add_scaled(float factor, const T* row, int64_t d, float* to) {
  for_each_vector(d, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
    store(to + j, fma(splat(factor), load_n(row + j, n), load(to + j)));
  });
}

template <class T>
LB_INLINE void merge(const SparseGqa& op, const GqaRow& at, float* sums, float& peak,
                     float& total) {
  const T* q = row_at<const T>(op.q, at.batch, at.head, at.row);
  const float factor = query_scale(op) * logit_factor(op);
  for (int64_t i = 0; i < op.own_count; ++i) {
    const int64_t head = at.head / op.group;
    const float logit = dot(q, row_at<const T>(op.own_k[i], at.batch, head, at.row), op.d) * factor;
    const float most = logit > peak ? logit : peak;
    const float keep = __builtin_exp2f(peak - most);
    const float weight = __builtin_exp2f(logit - most);
    const T* v = row_at<const T>(op.own_v[i], at.batch, head, at.row);
    for_each_vector(op.d, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
      store(sums + j, fma(splat(weight), load_n(v + j, n), load(sums + j) * splat(keep)));
    });
    total = total * keep + weight;
    peak = most;
  }
}

// The weight of an own key, and its slope ds, not scaled.
struct Share {
  float weight;
  float slope;
};

template <class T, class Row>
LB_INLINE Share share_of(const Row* q, const Row* grad_out, const T* k, const T* v, int64_t d,
                         float scale, const GqaRowSoftmax& softmax) {
  const float weight = __builtin_expf(dot(q, k, d) * scale - softmax.rest) * softmax.power;
  return {weight, weight * (dot(grad_out, v, d) - softmax.delta)};
}

template <class T>
LB_INLINE void grad_own(const SparseGqaBackward& args, const GqaUnit& unit) {
  const SparseGqa& op = args.op;
  const GqaBackwardItem& item = args.items[unit.item];
  const Segment& segment = op.segments[item.segment];
  const int64_t batch = segment.batch;
  float sum_k[kMostChannels + W];
  float sum_v[kMostChannels + W];
  for (int64_t row = segment.query + unit.first; row < segment.query + unit.first + unit.count;
       ++row) {
    for (int64_t i = 0; i < op.own_count; ++i) {
      const T* k = row_at<const T>(op.own_k[i], batch, item.head, row);
      const T* v = row_at<const T>(op.own_v[i], batch, item.head, row);
      std::memset(sum_k, 0, sizeof sum_k);
      std::memset(sum_v, 0, sizeof sum_v);
      for (int64_t head = item.head * op.group; head < (item.head + 1) * op.group; ++head) {
        const int64_t at = (batch * args.query_heads + head) * args.queries + row;
        const T* q = row_at<const T>(op.q, batch, head, row);
        const T* grad_out = row_at<const T>(args.grad_out, batch, head, row);
        GqaRowSoftmax softmax;
        split_lse(args.lse[at], softmax.rest, softmax.power);
        softmax.delta = dot(grad_out, row_at<const T>(args.out, batch, head, row), op.d);
        const Share share = share_of(q, grad_out, k, v, op.d, op.scale, softmax);
        add_scaled(share.slope, q, op.d, sum_k);
        add_scaled(share.weight, grad_out, op.d, sum_v);
      }
      T* grad_k = row_at<T>(args.grad_own_k[i], batch, item.head, row);
      T* grad_v = row_at<T>(args.grad_own_v[i], batch, item.head, row);
      for_each_vector(op.d, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
        store_n(grad_k + j, load(sum_k + j) * op.scale, n);
        store_n(grad_v + j, load(sum_v + j), n);
      });
    }
  }
}

}  // namespace

void ttt_attention_merge(const SparseGqa& op, const GqaRow& row, float* sums, float& peak,
                         float& total) {
  dispatch_type(op.dtype, [&]<class T>(T) { merge<T>(op, row, sums, peak, total); });
}

void ttt_attention_grad_q(const SparseGqa& op, const GqaRow& row, const float* q,
                          const float* grad_out, const GqaRowSoftmax& softmax, float* grad_q) {
  dispatch_type(op.dtype, [&]<class T>(T) {
    for (int64_t i = 0; i < op.own_count; ++i) {
      const int64_t head = row.head / op.group;
      const T* k = row_at<const T>(op.own_k[i], row.batch, head, row.row);
      const T* v = row_at<const T>(op.own_v[i], row.batch, head, row.row);
      add_scaled(share_of(q, grad_out, k, v, op.d, op.scale, softmax).slope, k, op.d, grad_q);
    }
  });
}

void ttt_attention_grad_own(const SparseGqaBackward& args, const GqaUnit& unit) {
  dispatch_type(args.op.dtype, [&]<class T>(T) { grad_own<T>(args, unit); });
}

}  // namespace leeboard::LEEBOARD_LEVEL

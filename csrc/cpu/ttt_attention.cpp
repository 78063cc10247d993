// Train-time-test attention: what a row's own keys of later steps add to sparse attention.
//
// The keys of step 0 are the business of sparse_gqa, forward and backward. Here are the diagonals:
// one key and one value a step, seen by one row. They join a row's running softmax before it is
// divided and rounded, so the result is that of one softmax, rounded once.
#include <cmath>

#include "gqa_common.h"
#include "level.h"
#include "vector_exp.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

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

// Scores of the rows with a step's keys, and products of their gradients with its values.
template <class T>
LB_INLINE void multiply_own(const SparseGqa& op, const GqaOwnRows& rows, int64_t step,
                            float* scores, float* products) {
  for (int64_t i = 0; i < rows.count; ++i) {
    const int64_t row = rows.query + (rows.first + i) / op.group;
    const T* k = row_at<const T>(op.own_k[step], rows.batch, rows.head, row);
    const T* v = row_at<const T>(op.own_v[step], rows.batch, rows.head, row);
    scores[i] = dot(rows.q + i * rows.stride, k, op.d);
    products[i] = dot(rows.grad_out + i * rows.stride, v, op.d);
  }
}

template <class T>
LB_INLINE void own_rows(const SparseGqa& op, const GqaOwnRows& rows) {
  for (int64_t step = 0; step < op.own_count; ++step) {
    float* weights = rows.shares + 2 * step * rows.item_rows + rows.first;
    float* slopes = weights + rows.item_rows;
    multiply_own<T>(op, rows, step, weights, slopes);
    for_each_vector(rows.count, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
      const vf score = load_n(weights + j, n) * splat(op.scale);
      const vf weight = vector_exp(score - load_n(rows.rest + j, n)) * load_n(rows.power + j, n);
      store_n(slopes + j, weight * (load_n(slopes + j, n) - load_n(rows.delta + j, n)), n);
      store_n(weights + j, weight, n);
    });
    for (int64_t i = 0; i < rows.count; ++i) {
      const int64_t row = rows.query + (rows.first + i) / op.group;
      const T* k = row_at<const T>(op.own_k[step], rows.batch, rows.head, row);
      add_scaled(slopes[i], k, op.d, rows.grad_q + i * rows.stride);
    }
  }
}

template <class T>
LB_INLINE void grad_own(const SparseGqaBackward& args, const GqaUnit& unit, const float* shares) {
  const SparseGqa& op = args.op;
  const GqaBackwardItem& item = args.items[unit.item];
  const Segment& segment = op.segments[item.segment];
  const int64_t item_rows = segment.queries * op.group;
  for (int64_t step = 0; step < op.own_count; ++step) {
    const float* weights = shares + 2 * step * item_rows;
    for (int64_t token = unit.first; token < unit.first + unit.count; ++token) {
      const int64_t row = segment.query + token;
      const int64_t first = item.head * op.group;
      const T* q = row_at<const T>(op.q, segment.batch, first, row);
      const T* grad_out = row_at<const T>(args.grad_out, segment.batch, first, row);
      T* grad_k = row_at<T>(args.grad_own_k[step], segment.batch, item.head, row);
      T* grad_v = row_at<T>(args.grad_own_v[step], segment.batch, item.head, row);
      for_each_vector(op.d, [&](int64_t j, int64_t n) {
        vf sum_k = {};
        vf sum_v = {};
        for (int64_t h = 0; h < op.group; ++h) {
          const float* share = weights + token * op.group + h;
          sum_k = fma(splat(share[item_rows]), load_n(q + h * op.q.head + j, n), sum_k);
          sum_v = fma(splat(share[0]), load_n(grad_out + h * args.grad_out.head + j, n), sum_v);
        }
        store_n(grad_k + j, sum_k * op.scale, n);
        store_n(grad_v + j, sum_v, n);
      });
    }
  }
}

}  // namespace

void ttt_attention_merge(const SparseGqa& op, const GqaRow& row, float* sums, float& peak,
                         float& total) {
  dispatch_type(op.dtype, [&]<class T>(T) { merge<T>(op, row, sums, peak, total); });
}

void ttt_attention_rows(const SparseGqa& op, const GqaOwnRows& rows) {
  dispatch_type(op.dtype, [&]<class T>(T) { own_rows<T>(op, rows); });
}

void ttt_attention_grad_own(const SparseGqaBackward& args, const GqaUnit& unit,
                            const float* shares) {
  dispatch_type(args.op.dtype, [&]<class T>(T) { grad_own<T>(args, unit, shares); });
}

}  // namespace leeboard::LEEBOARD_LEVEL

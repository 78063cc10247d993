// Rows of logits of a drafter against rows of its teacher's: losses, and their gradient in place.
//
// Every sum runs over blocks of columns, then over the blocks, in an order that depends on the
// number of columns alone. Both distributions come from the same steps, so that equal logits give
// equal probabilities.
#include <cmath>

#include "level.h"
#include "vector_math.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

// Vectors of a block of a sum.
inline constexpr int64_t kBlock = 64 * W;

template <class Body>
LB_INLINE void for_each_block(int64_t cols, Body body) {
  for (int64_t j = 0; j < cols; j += kBlock) body(j, cols - j < kBlock ? cols - j : kBlock);
}

// v with zeros after its first n lanes.
LB_INLINE vf first_lanes(vf v, int64_t n) {
  float lane[W] = {};
  store_tail(lane, v, n);
  return load(lane);
}

// A row's largest value, where it is first, and sum_v exp(x[v] - largest).
struct RowSums {
  float most;
  float total;
  int64_t best;
};

// Keeps the exponentials in `kept`, if that is given. Out of line: every kind of row has it.
LB_OUTLINE RowSums sums_of(const float* x, int64_t cols, float* kept = nullptr) {
  vf most = splat(-INFINITY);
  vi at = {};
  vi index = {};
  for (int i = 0; i < W; ++i) index[i] = i;
  for_each_vector(cols, [&](int64_t j, int64_t n) {
    vf v = load_n(x + j, n);
    if (n < W) {
      const vi left = vi{} + static_cast<int32_t>(cols);
      v = index < left ? v : splat(-INFINITY);
    }
    const vi above = v > most;
    most = above ? v : most;
    at = above ? index : at;
    index += W;
  });
  RowSums row{most[0], 0.0f, at[0]};
  for (int i = 1; i < W; ++i) {
    if (most[i] > row.most || (most[i] == row.most && at[i] < row.best)) {
      row.most = most[i];
      row.best = at[i];
    }
  }
  const vf largest = splat(row.most);
  vf total = {};
  for_each_block(cols, [&](int64_t first, int64_t count) {
    vf sum = {};
    for_each_vector(count, [&](int64_t j, int64_t n) {
      const vf e = vector_exp(load_n(x + first + j, n) - largest);
      if (kept != nullptr) store_n(kept + first + j, e, n);
      sum += n < W ? first_lanes(e, n) : e;
    });
    total += sum;
  });
  row.total = horizontal_sum(total);
  // As if the first NaN were the largest of a row that is NaN throughout.
  if (row.total != row.total) row.best = 0;
  return row;
}

LB_INLINE void cap(float* x, int64_t cols, float softcap) {
  const vf bound = splat(softcap);
  const vf inverse = splat(1.0f / softcap);
  for_each_vector(cols, [&](int64_t j, int64_t n) {
    store_n(x + j, vector_tanh(load_n(x + j, n) * inverse) * bound, n);
  });
}

void teacher_row(const TttLossTeacher& args, int64_t r) {
  float* z = static_cast<float*>(args.logits.data) + r * args.logits.stride;
  if (args.softcap > 0.0f) cap(z, args.cols, args.softcap);
  const RowSums row = sums_of(z, args.cols);
  const vf most = splat(row.most);
  for_each_vector(args.cols,
                  [&](int64_t j, int64_t n) { store_n(z + j, load_n(z + j, n) - most, n); });
  args.best[r] = row.best;
  args.total[r] = row.total;
  args.coverage[r] = 1.0f;
  if (args.logsumexp != nullptr) {
    const double part = static_cast<double>(row.most) - static_cast<double>(args.logsumexp[r]);
    args.coverage[r] = static_cast<float>(std::exp(part) * static_cast<double>(row.total));
  }
}

// What a pair of rows shares at every column.
struct PairOfRows {
  const float* x;
  const float* exp_x;  // of x less its largest
  const float* z;      // less its largest
  vf most;             // of x
  vf log_ratio;        // of the sums, the teacher's over the drafter's
  vf inverse_p;
  vf inverse_q;
  vf coverage;
};

// The logarithm of p~ / q, and p~, p and q at some columns.
struct Shares {
  vf log_ratio;
  vf p_draft;
  vf p;
  vf q;
};

LB_INLINE Shares shares_at(const PairOfRows& pair, int64_t j, int64_t n) {
  const vf z = load_n(pair.z + j, n);
  const vf x = load_n(pair.x + j, n) - pair.most;
  Shares s;
  s.log_ratio = (z - x) - pair.log_ratio;
  s.p_draft = vector_exp(z) * pair.inverse_p;
  s.p = s.p_draft * pair.coverage;
  s.q = load_n(pair.exp_x + j, n) * pair.inverse_q;
  return s;
}

// p~ log(p~ / q) - p~ + q, which sums to the divergence and is nowhere negative: what rounding
// makes of the sums of p~ and q has no part in it. Where p~ and q are close, by the series of (d +
// exp(-d) - 1) / d^2.
LB_INLINE vf divergence(const Shares& s) {
  const vf d = s.log_ratio;
  vf series = splat(-1.0f / 39916800.0f);
  series = fma(series, d, splat(1.0f / 3628800.0f));
  series = fma(series, d, splat(-1.0f / 362880.0f));
  series = fma(series, d, splat(1.0f / 40320.0f));
  series = fma(series, d, splat(-1.0f / 5040.0f));
  series = fma(series, d, splat(1.0f / 720.0f));
  series = fma(series, d, splat(-1.0f / 120.0f));
  series = fma(series, d, splat(1.0f / 24.0f));
  series = fma(series, d, splat(-1.0f / 6.0f));
  series = fma(series, d, splat(0.5f));
  const vf near = s.p_draft * d * (d * series);
  const vf far = s.p_draft == vf{} ? s.q : s.p_draft * d - (s.p_draft - s.q);
  const vi close = (d < splat(1.0f)) & (d > splat(-1.0f));
  return close ? near : far;
}

// Half where they are equal: what autograd makes of a minimum.
LB_INLINE vf below(const Shares& s) {
  const vf one = splat(1.0f);
  return s.q < s.p ? one : (s.q == s.p ? splat(0.5f) : vf{});
}

template <TttLossKind kind, bool gradient>
void student_row(const TttLossRows& args, int64_t r) {
  float* x = static_cast<float*>(args.logits.data) + r * args.logits.stride;
  const int64_t place = args.place[r];
  const float weight = args.weight[r];
  const RowSums row = sums_of(x, args.cols, args.exponentials);
  const double ratio = static_cast<double>(args.total[place]) / static_cast<double>(row.total);
  const PairOfRows pair{x,
                        args.exponentials,
                        static_cast<const float*>(args.teacher.data) + place * args.teacher.stride,
                        splat(row.most),
                        splat(static_cast<float>(std::log(ratio))),
                        splat(1.0f / args.total[place]),
                        splat(1.0f / row.total),
                        splat(args.coverage[place])};
  vf kl_total = {};
  vf overlap_total = {};
  vf below_total = {};
  for_each_block(args.cols, [&](int64_t first, int64_t count) {
    vf kl = {};
    vf overlap = {};
    vf part = {};
    for_each_vector(count, [&](int64_t j, int64_t n) {
      const Shares s = shares_at(pair, first + j, n);
      vf term = divergence(s);
      vf least = s.q < s.p ? s.q : s.p;
      if (n < W) {
        term = first_lanes(term, n);
        least = first_lanes(least, n);
      }
      kl += term;
      overlap += least;
      if constexpr (gradient) {
        if constexpr (kind == TttLossKind::kKl) {
          store_n(x + first + j, splat(weight) * (s.q - s.p_draft), n);
        } else {
          const vf share = below(s) * s.q;
          part += n < W ? first_lanes(share, n) : share;
        }
      }
    });
    kl_total += kl;
    overlap_total += overlap;
    below_total += part;
  });
  const float kl = horizontal_sum(kl_total);
  float overlap = horizontal_sum(overlap_total);
  // A comparison lost the NaN.
  if (row.total != row.total) overlap = row.total;
  float lam = 0.0f;
  if constexpr (kind == TttLossKind::kKl) {
    args.row_loss[r] = kl;
  } else if constexpr (kind == TttLossKind::kAlpha) {
    args.row_loss[r] = static_cast<float>(-std::log(static_cast<double>(overlap)));
  } else {
    lam =
        static_cast<float>(std::exp(-static_cast<double>(args.eta) * static_cast<double>(overlap)));
    args.row_loss[r] = lam * kl + (1.0f - lam) * (1.0f - overlap);
  }
  args.overlap[r] = overlap;
  args.hit[r] = row.best == args.best[place];
  if constexpr (gradient && kind != TttLossKind::kKl) {
    const vf mean = splat(horizontal_sum(below_total));
    const vf of_kl = splat(weight * lam);
    const vf of_overlap =
        splat(kind == TttLossKind::kAlpha ? -weight / overlap : -weight * (1.0f - lam));
    for_each_vector(args.cols, [&](int64_t j, int64_t n) {
      const Shares s = shares_at(pair, j, n);
      vf slope = of_overlap * (s.q * (below(s) - mean));
      if constexpr (kind == TttLossKind::kLambda) slope += of_kl * (s.q - s.p_draft);
      store_n(x + j, slope, n);
    });
  }
}

template <TttLossKind kind>
void student_rows(const TttLossRows& args, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    if (args.gradient) {
      student_row<kind, true>(args, r);
    } else {
      student_row<kind, false>(args, r);
    }
  }
}

}  // namespace

void ttt_loss_teacher(const TttLossTeacher& args, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) teacher_row(args, r);
}

void ttt_loss_rows(const TttLossRows& args, int64_t begin, int64_t end) {
  switch (args.kind) {
    case TttLossKind::kKl:
      return student_rows<TttLossKind::kKl>(args, begin, end);
    case TttLossKind::kAlpha:
      return student_rows<TttLossKind::kAlpha>(args, begin, end);
    case TttLossKind::kLambda:
      return student_rows<TttLossKind::kLambda>(args, begin, end);
  }
}

}  // namespace leeboard::LEEBOARD_LEVEL

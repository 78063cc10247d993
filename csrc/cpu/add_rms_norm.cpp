// Residual addition and RMSNorm of the sum, which is rounded to the storage type first. In the
// cache the sum is written at once and read back for the second pass; rows that go past the cache
// are added twice instead, so that all their writes happen together.
#include "level.h"
#include "norm_row.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

template <class T>
LB_INLINE vf rounded_sum(const T* x, const T* residual, int64_t n) {
  return round_through(load_n(x, n) + load_n(residual, n), T{});
}

template <class T, bool keep>
LB_OUTLINE float sum_of_squared_sums(const T* x, const T* residual, int64_t cols, T* kept) {
  vf acc[4] = {};
  auto add = [&](vf squares, int64_t j, int64_t n) __attribute__((always_inline)) {
    const vf sum = rounded_sum(x + j, residual + j, n);
    if constexpr (keep) store_n(kept + j, sum, n);
    return fma(sum, sum, squares);
  };
  int64_t j = 0;
  for (; j + 4 * W <= cols; j += 4 * W) {
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) acc[u] = add(acc[u], j + u * W, W);
  }
  for (; j < cols; j += W) acc[0] = add(acc[0], j, cols - j < W ? cols - j : W);
  return sum_of_four(acc);
}

template <class T, Gain gain, bool streaming, int side>
LB_INLINE void forward_step(const AddRmsNormForward& args, int64_t row, int64_t end) {
  const int64_t cols = args.norm.cols;
  const T* x[side];
  const T* residual[side];
  T* normed[side];
  T* new_residual[side];
  vf r[side];
  for (int k = 0; k < side; ++k) {
    x[k] = static_cast<const T*>(args.x.data) + (row + k) * args.x.stride;
    residual[k] = static_cast<const T*>(args.residual.data) + (row + k) * args.residual.stride;
    normed[k] = static_cast<T*>(args.normed.data) + (row + k) * args.normed.stride;
    new_residual[k] =
        static_cast<T*>(args.new_residual.data) + (row + k) * args.new_residual.stride;
    const float squares =
        sum_of_squared_sums<T, !streaming>(x[k], residual[k], cols, new_residual[k]);
    r[k] = splat(reciprocal_rms(squares, cols, args.norm.eps));
  }
  // While these rows are written, memory already reads the next ones.
  const int64_t ahead = row + 2 * side <= end ? side : 0;
  auto write = [&](int k, int64_t j, int64_t n, vf factor) __attribute__((always_inline)) {
    vf sum;
    if constexpr (streaming) {
      prefetch(x[k] + ahead * args.x.stride + j);
      prefetch(residual[k] + ahead * args.residual.stride + j);
      sum = rounded_sum(x[k] + j, residual[k] + j, n);
      stream(new_residual[k] + j, sum);
    } else {
      sum = load_n(new_residual[k] + j, n);
    }
    put<T, streaming>(normed[k] + j, apply_gain<T, gain>(sum * r[k], factor), n);
  };
  write_side_by_side<T, gain, side>(args.norm, write);
}

template <class T, Gain gain, bool streaming>
void forward_rows(const AddRmsNormForward& args, int64_t begin, int64_t end) {
  constexpr int side = kSide<T, streaming>;
  int64_t row = begin;
  for (; row + side <= end; row += side) forward_step<T, gain, streaming, side>(args, row, end);
  for (; row < end; ++row) forward_step<T, gain, streaming, 1>(args, row, end);
  if constexpr (streaming) stream_fence();
}

}  // namespace

void add_rms_norm_forward(const AddRmsNormForward& args, int64_t begin, int64_t end) {
  dispatch_norm(args.norm, [&]<class T, Gain gain>() {
    const int64_t cols = args.norm.cols;
    if (can_stream<T>(args.stream, args.normed, cols) &&
        can_stream<T>(args.stream, args.new_residual, cols)) {
      forward_rows<T, gain, true>(args, begin, end);
    } else {
      forward_rows<T, gain, false>(args, begin, end);
    }
  });
}

}  // namespace leeboard::LEEBOARD_LEVEL

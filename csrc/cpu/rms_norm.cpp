// RMSNorm over rows, forward and backward. Each row is read from memory once: the second pass over
// a row meets it in the first-level cache.
#include "level.h"
#include "norm_row.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

template <class T, Gain gain, bool streaming, int side>
LB_INLINE void forward_step(const RmsNormForward& args, int64_t row, int64_t end) {
  const int64_t cols = args.norm.cols;
  const T* x[side];
  T* out[side];
  vf r[side];
  for (int k = 0; k < side; ++k) {
    x[k] = static_cast<const T*>(args.x.data) + (row + k) * args.x.stride;
    out[k] = static_cast<T*>(args.out.data) + (row + k) * args.out.stride;
    r[k] = splat(reciprocal_rms(sum_of_squares(x[k], cols), cols, args.norm.eps));
  }
  // While these rows are written, memory already reads the next ones.
  const int64_t ahead = row + 2 * side <= end ? side * args.x.stride : 0;
  auto write = [&](int k, int64_t j, int64_t n, vf factor) __attribute__((always_inline)) {
    if constexpr (streaming) prefetch(x[k] + ahead + j);
    const vf normed = load_n(x[k] + j, n) * r[k];
    put<T, streaming>(out[k] + j, apply_gain<T, gain>(normed, factor), n);
  };
  write_side_by_side<T, gain, side>(args.norm, write);
}

template <class T, Gain gain, bool streaming>
void forward_rows(const RmsNormForward& args, int64_t begin, int64_t end) {
  constexpr int side = kSide<T, streaming>;
  int64_t row = begin;
  for (; row + side <= end; row += side) forward_step<T, gain, streaming, side>(args, row, end);
  for (; row < end; ++row) forward_step<T, gain, streaming, 1>(args, row, end);
  if constexpr (streaming) stream_fence();
}

// Rows per step of the backward: their weight-gradient terms are summed in registers, so that the
// partial sum is read and written once per step and not once per row.
inline constexpr int kStep = 4;

struct RowScales {
  float r;  // reciprocal RMS
  float c;  // r^3 mean(g x), g the gradient times the gain
};

template <class T, Gain gain>
LB_OUTLINE RowScales row_scales(const NormParams& norm, const T* x, const T* grad) {
  const T* weight = static_cast<const T*>(norm.weight);
  const vf offset = splat(norm.weight_offset);
  vf squares[4] = {};
  vf dots[4] = {};
  int64_t j = 0;
  for (; j + 4 * W <= norm.cols; j += 4 * W) {
#pragma GCC unroll 2
    for (int u = 0; u < 2; ++u) {
      const int64_t at = j + 2 * u * W;
      const Pair xs = load_pair(x + at);
      Pair g = load_pair(grad + at);
      if constexpr (gain != Gain::kNone) {
        const Pair w = load_pair(weight + at);
        g = {g.first * (w.first + offset), g.second * (w.second + offset)};
      }
      squares[2 * u] = fma(xs.first, xs.first, squares[2 * u]);
      squares[2 * u + 1] = fma(xs.second, xs.second, squares[2 * u + 1]);
      dots[2 * u] = fma(g.first, xs.first, dots[2 * u]);
      dots[2 * u + 1] = fma(g.second, xs.second, dots[2 * u + 1]);
    }
  }
  for (; j < norm.cols; j += W) {
    const int64_t n = norm.cols - j < W ? norm.cols - j : W;
    const vf xs = load_n(x + j, n);
    vf g = load_n(grad + j, n);
    if constexpr (gain != Gain::kNone) g = g * (load_n(weight + j, n) + offset);
    squares[0] = fma(xs, xs, squares[0]);
    dots[0] = fma(g, xs, dots[0]);
  }
  const float r = reciprocal_rms(sum_of_four(squares), norm.cols, norm.eps);
  return {r, r * r * r * sum_of_four(dots) / static_cast<float>(norm.cols)};
}

template <class T, Gain gain, bool streaming, int step>
LB_INLINE void backward_step(const RmsNormBackward& args, int64_t row, int64_t end,
                             float* partial) {
  const int64_t cols = args.norm.cols;
  const T* x[step];
  const T* grad[step];
  const T* grad_residual[step];
  T* grad_x[step];
  vf r[step];
  vf c[step];
#pragma GCC unroll 4
  for (int k = 0; k < step; ++k) {
    x[k] = static_cast<const T*>(args.x.data) + (row + k) * args.x.stride;
    grad[k] = static_cast<const T*>(args.grad.data) + (row + k) * args.grad.stride;
    grad_residual[k] =
        static_cast<const T*>(args.grad_residual.data) + (row + k) * args.grad_residual.stride;
    grad_x[k] = static_cast<T*>(args.grad_x.data) + (row + k) * args.grad_x.stride;
    const RowScales scales = row_scales<T, gain>(args.norm, x[k], grad[k]);
    r[k] = splat(scales.r);
    c[k] = splat(scales.c);
  }
  const int64_t ahead = row + 2 * step <= end ? step : 0;
  for_each_vector(cols, [&](int64_t j, int64_t n) {
    vf weight_terms = {};
    vf scale = splat(1.0f);
    if constexpr (gain != Gain::kNone) scale = gain_at<T, Gain::kAfter>(args.norm, j, n);
#pragma GCC unroll 4
    for (int k = 0; k < step; ++k) {
      const vf xv = load_n(x[k] + j, n);
      const vf gv = load_n(grad[k] + j, n);
      if constexpr (streaming) {
        prefetch(x[k] + ahead * args.x.stride + j);
        prefetch(grad[k] + ahead * args.grad.stride + j);
      }
      vf out = r[k] * (gv * scale) - c[k] * xv;
      if (args.grad_residual.data != nullptr) out = out + load_n(grad_residual[k] + j, n);
      if constexpr (gain != Gain::kNone) {
        vf normed = xv * r[k];
        if constexpr (gain == Gain::kBefore) normed = round_through(normed, T{});
        weight_terms = fma(gv, normed, weight_terms);
      }
      put<T, streaming>(grad_x[k] + j, out, n);
    }
    if constexpr (gain != Gain::kNone) {
      store_n(partial + j, load_n(partial + j, n) + weight_terms, n);
    }
  });
}

template <class T, Gain gain, bool streaming>
void backward_chunks(const RmsNormBackward& args, int64_t begin, int64_t end) {
  const int64_t cols = args.norm.cols;
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    float* partial = nullptr;
    if constexpr (gain != Gain::kNone) {
      partial = args.partial + chunk * cols;
      std::memset(partial, 0, static_cast<size_t>(cols) * sizeof(float));
    }
    int64_t row = chunk * args.chunk_rows;
    const int64_t last = row + args.chunk_rows < args.rows ? row + args.chunk_rows : args.rows;
    for (; row + kStep <= last; row += kStep) {
      backward_step<T, gain, streaming, kStep>(args, row, args.rows, partial);
    }
    for (; row < last; ++row) backward_step<T, gain, streaming, 1>(args, row, args.rows, partial);
  }
  if constexpr (streaming) stream_fence();
}

template <class T>
void sum_columns(const ColumnSum& args, int64_t begin, int64_t end) {
  T* out = static_cast<T*>(args.out);
  for_each_vector(end - begin, [&](int64_t offset, int64_t n) {
    const int64_t j = begin + offset;
    vf acc = {};
    for (int64_t c = 0; c < args.chunks; ++c) {
      acc = acc + load_n(args.partial + c * args.cols + j, n);
    }
    store_n(out + j, acc, n);
  });
}

}  // namespace

void rms_norm_forward(const RmsNormForward& args, int64_t begin, int64_t end) {
  dispatch_norm(args.norm, [&]<class T, Gain gain>() {
    if (can_stream<T>(args.stream, args.out, args.norm.cols)) {
      forward_rows<T, gain, true>(args, begin, end);
    } else {
      forward_rows<T, gain, false>(args, begin, end);
    }
  });
}

void rms_norm_backward(const RmsNormBackward& args, int64_t begin, int64_t end) {
  dispatch_norm(args.norm, [&]<class T, Gain gain>() {
    if (can_stream<T>(args.stream, args.grad_x, args.norm.cols)) {
      backward_chunks<T, gain, true>(args, begin, end);
    } else {
      backward_chunks<T, gain, false>(args, begin, end);
    }
  });
}

void column_sum(const ColumnSum& args, int64_t begin, int64_t end) {
  dispatch_type(args.dtype, [&]<class T>(T) { sum_columns<T>(args, begin, end); });
}

}  // namespace leeboard::LEEBOARD_LEVEL

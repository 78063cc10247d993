// RMSNorm over rows, forward and backward. Each row is read from memory once: the second pass over
// a row meets it in the first-level cache.
#include "level.h"
#include "norm_row.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

template <class T, Gain gain, bool streaming>
void forward_rows(const RmsNormForward& args, int64_t begin, int64_t end) {
  const int64_t cols = args.norm.cols;
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(args.x.data) + row * args.x.stride;
    T* out = static_cast<T*>(args.out.data) + row * args.out.stride;
    const vf r = splat(reciprocal_rms(sum_of_squares(x, cols), cols, args.norm.eps));
    for_each_vector(cols, [&](int64_t j, int64_t n) {
      const vf normed = load_n(x + j, n) * r;
      put<T, streaming>(out + j, apply_gain<T, gain>(args.norm, normed, j, n), n);
    });
  }
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
  const float r = reciprocal_rms(sum_of_squares(x, norm.cols), norm.cols, norm.eps);
  const float dot = reduce_row(norm.cols, [&](vf acc, int64_t j, int64_t n) {
    vf g = load_n(grad + j, n);
    if constexpr (gain != Gain::kNone) g = g * gain_at<T>(norm, j, n);
    return fma(g, load_n(x + j, n), acc);
  });
  return {r, r * r * r * dot / static_cast<float>(norm.cols)};
}

template <class T, Gain gain, bool streaming, int step>
LB_INLINE void backward_step(const RmsNormBackward& args, int64_t row, float* partial) {
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
  for_each_vector(cols, [&](int64_t j, int64_t n) {
    vf weight_terms = {};
    vf scale = splat(1.0f);
    if constexpr (gain != Gain::kNone) scale = gain_at<T>(args.norm, j, n);
#pragma GCC unroll 4
    for (int k = 0; k < step; ++k) {
      const vf xv = load_n(x[k] + j, n);
      const vf gv = load_n(grad[k] + j, n);
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
      backward_step<T, gain, streaming, kStep>(args, row, partial);
    }
    for (; row < last; ++row) backward_step<T, gain, streaming, 1>(args, row, partial);
  }
  if constexpr (streaming) stream_fence();
}

template <class T>
bool can_stream(bool asked, const Rows& out, int64_t cols) {
  return asked && cols % W == 0 && out.stride % W == 0 &&
         vector_aligned(static_cast<const T*>(out.data));
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

// Residual addition and RMSNorm: the sum is rounded to the storage type, written, and normalised
// while the row is still in the first-level cache. When the sum is streamed past the cache, a row
// buffer on the stack holds it in the meantime.
#include "level.h"
#include "norm_row.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

inline constexpr int64_t kBufferCols = 8192;

template <class T, Gain gain, bool streaming>
void forward_rows(const AddRmsNormForward& args, int64_t begin, int64_t end) {
  alignas(64) float buffer[streaming ? kBufferCols : W];
  const int64_t cols = args.norm.cols;
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(args.x.data) + row * args.x.stride;
    const T* residual = static_cast<const T*>(args.residual.data) + row * args.residual.stride;
    T* normed = static_cast<T*>(args.normed.data) + row * args.normed.stride;
    T* new_residual = static_cast<T*>(args.new_residual.data) + row * args.new_residual.stride;
    const float squares = reduce_row(cols, [&](vf acc, int64_t j, int64_t n) {
      const vf sum = round_through(load_n(x + j, n) + load_n(residual + j, n), T{});
      put<T, streaming>(new_residual + j, sum, n);
      if constexpr (streaming) store(buffer + j, sum);
      return fma(sum, sum, acc);
    });
    const vf r = splat(reciprocal_rms(squares, cols, args.norm.eps));
    for_each_vector(cols, [&](int64_t j, int64_t n) {
      vf sum;
      if constexpr (streaming) {
        sum = load(buffer + j);
      } else {
        sum = load_n(new_residual + j, n);
      }
      put<T, streaming>(normed + j, apply_gain<T, gain>(args.norm, sum * r, j, n), n);
    });
  }
  if constexpr (streaming) stream_fence();
}

template <class T>
bool can_stream(const AddRmsNormForward& args) {
  return args.stream && args.norm.cols <= kBufferCols && args.norm.cols % W == 0 &&
         args.normed.stride % W == 0 && args.new_residual.stride % W == 0 &&
         vector_aligned(static_cast<const T*>(args.normed.data)) &&
         vector_aligned(static_cast<const T*>(args.new_residual.data));
}

}  // namespace

void add_rms_norm_forward(const AddRmsNormForward& args, int64_t begin, int64_t end) {
  dispatch_norm(args.norm, [&]<class T, Gain gain>() {
    if (can_stream<T>(args)) {
      forward_rows<T, gain, true>(args, begin, end);
    } else {
      forward_rows<T, gain, false>(args, begin, end);
    }
  });
}

}  // namespace leeboard::LEEBOARD_LEVEL

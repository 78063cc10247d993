// Projection of normalised target states: the states are scaled into a small float32 panel once,
// the weights are streamed past it.
#include "dot_panel.h"
#include "level.h"
#include "norm_row.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

template <class T>
void pack_rows(const PackNormed& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(args.x.data) + row * args.x.stride;
    float* packed = args.packed + row * args.packed_stride;
    vf r = splat(1.0f);
    if (args.normalise) {
      r = splat(reciprocal_rms(sum_of_squares(x, args.cols), args.cols, args.eps));
    }
    for_each_vector(args.cols, [&](int64_t j, int64_t n) {
      vf value = load_n(x + j, n) * r;
      if (args.gamma != nullptr) {
        value = value * load_n(static_cast<const T*>(args.gamma) + j, n);
      }
      float lane[W];
      store(lane, value);
      for (int64_t i = 0; i < n; ++i) {
        packed[packed_position<T>(args.packed_offset + j + i)] = lane[i];
      }
    });
  }
}

template <class T>
void linear_features(const LinearForward& args, int64_t begin, int64_t end) {
  T* out = static_cast<T*>(args.out.data);
  float products[kLinearMaxRows * kPanelFeatures];
  dot_panel<T>(args.weight, args.packed, args.packed_stride, args.rows, args.k, begin, end,
               products, [&](int64_t v, int64_t count, const float* values) {
                 for (int64_t m = 0; m < args.rows; ++m) {
                   const float* from = values + m * kPanelFeatures;
                   T* to = out + m * args.out.stride + v;
                   for (int64_t i = 0; i < count; i += W) {
                     const int64_t n = count - i < W ? count - i : W;
                     store_n(to + i, load_n(from + i, n), n);
                   }
                 }
               });
}

}  // namespace

void pack_normed(const PackNormed& args, int64_t begin, int64_t end) {
  dispatch_type(args.dtype, [&]<class T>(T) { pack_rows<T>(args, begin, end); });
}

void linear_forward(const LinearForward& args, int64_t begin, int64_t end) {
  dispatch_type(args.dtype, [&]<class T>(T) { linear_features<T>(args, begin, end); });
}

}  // namespace leeboard::LEEBOARD_LEVEL

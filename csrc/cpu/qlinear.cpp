// Products with a weight matrix in any format, and what is added to them.
#include "dot_panel.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

template <class T>
void linear_features(const LinearForward& args, int64_t begin, int64_t end) {
  T* out = static_cast<T*>(args.out.data);
  const T* residual = static_cast<const T*>(args.residual.data);
  float products[kLinearMaxRows * kPanelFeatures];
  multiply_panel(args.weight, args.packed, args.packed_stride, args.rows, begin, end, products,
                 [&](int64_t v, int64_t count, const float* values) {
                   for (int64_t m = 0; m < args.rows; ++m) {
                     const float* from = values + m * kPanelFeatures;
                     for (int64_t i = 0; i < count; i += W) {
                       const int64_t n = count - i < W ? count - i : W;
                       vf sum = load_n(from + i, n);
                       if (residual != nullptr) {
                         sum = sum + load_n(residual + m * args.residual.stride + v + i, n);
                       }
                       store_n(out + m * args.out.stride + v + i, sum, n);
                     }
                   }
                 });
}

}  // namespace

void linear_forward(const LinearForward& args, int64_t begin, int64_t end) {
  dispatch_type(args.dtype, [&]<class T>(T) { linear_features<T>(args, begin, end); });
}

}  // namespace leeboard::LEEBOARD_LEVEL

// The gated products of a feed-forward block: gate and up of a feature are read together, and only
// silu(gate) * up is kept, in float32 and in the order in which the down projection wants it.
#include "dot_panel.h"
#include "vector_math.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

template <class Order>
void gated_features(const SwigluForward& args, int64_t begin, int64_t end) {
  float up[kLinearMaxRows * kPanelFeatures];
  float gate[kLinearMaxRows * kPanelFeatures];
  multiply_panel(args.gate, args.gate_packed, args.packed_stride, args.rows, begin, end, gate,
                 [&](int64_t v, int64_t n, const float*) {
                   panel_products(args.up, args.up_packed, args.packed_stride, args.rows, v, n, up);
                   for (int64_t m = 0; m < args.rows; ++m) {
                     float* gated = gate + m * kPanelFeatures;
                     swiglu(gated, up + m * kPanelFeatures, n, gated);
                     float* to = args.gated + m * args.gated_stride;
                     for (int64_t i = 0; i < n; ++i) to[packed_position<Order>(v + i)] = gated[i];
                   }
                 });
}

}  // namespace

void swiglu_gated(const SwigluForward& args, int64_t begin, int64_t end) {
  if (args.down_format == WeightFormat::kBFloat16) {
    gated_features<bf16>(args, begin, end);
  } else {
    gated_features<float>(args, begin, end);
  }
}

}  // namespace leeboard::LEEBOARD_LEVEL

// Preparation of activations: each row is normed, if asked, into a small float32 panel, past which
// linear_forward streams the weights.
#include "level.h"
#include "norm_row.h"
#include "weight_format.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

template <class Order, class T, class G>
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
        value = value * load_n(static_cast<const G*>(args.gamma) + j, n);
      }
      if constexpr (__is_same(Order, float)) {
        store_n(packed + args.packed_offset + j, value, n);
      } else {
        float lane[W];
        store(lane, value);
        for (int64_t i = 0; i < n; ++i) {
          packed[packed_position<Order>(args.packed_offset + j + i)] = lane[i];
        }
      }
    });
  }
}

}  // namespace

void pack_normed(const PackNormed& args, int64_t begin, int64_t end) {
  dispatch_type(args.dtype, [&]<class T>(T) {
    const bool mixed = args.gamma_dtype != args.dtype;
    if (args.format == WeightFormat::kBFloat16) {
      mixed ? pack_rows<bf16, T, float>(args, begin, end) : pack_rows<bf16, T, T>(args, begin, end);
    } else {
      mixed ? pack_rows<float, T, float>(args, begin, end)
            : pack_rows<float, T, T>(args, begin, end);
    }
  });
}

}  // namespace leeboard::LEEBOARD_LEVEL

// The best vocabulary entry of a head: products live in a tile of a few entries, logits nowhere.
#include <cmath>

#include "dot_panel.h"
#include "level.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

// torch.max's order: NaN above every number, the first of equals wins.
LB_INLINE bool beats(float value, float best) {
  return value > best || (std::isnan(value) && !std::isnan(best));
}

template <class F>
void argmax_blocks(const LinearArgmax& args, int64_t begin, int64_t end) {
  float products[kLinearMaxRows * kPanelFeatures];
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block * args.block;
    const int64_t last =
        first + args.block < args.weight.rows ? first + args.block : args.weight.rows;
    float* best_value = args.best_value + block * args.rows;
    int64_t* best_index = args.best_index + block * args.rows;
    for (int64_t m = 0; m < args.rows; ++m) best_index[m] = -1;
    dot_panel<F>(args.weight, args.packed, args.packed_stride, args.rows, first, last, products,
                 [&](int64_t v, int64_t count, const float* values) {
                   for (int64_t m = 0; m < args.rows; ++m) {
                     for (int64_t i = 0; i < count; ++i) {
                       const float value = values[m * kPanelFeatures + i];
                       if (best_index[m] < 0 || beats(value, best_value[m])) {
                         best_value[m] = value;
                         best_index[m] = v + i;
                       }
                     }
                   }
                 });
  }
}

}  // namespace

void linear_argmax(const LinearArgmax& args, int64_t begin, int64_t end) {
  dispatch_format(args.weight.format, [&]<class F>(F) { argmax_blocks<F>(args, begin, end); });
}

}  // namespace leeboard::LEEBOARD_LEVEL

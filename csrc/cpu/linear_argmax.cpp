// What a head keeps of each block of its vocabulary: logits of one block at a time live in a tile,
// the whole of them nowhere. The largest of a row is the first of its k largest, so that
// linear_argmax is linear_topk with k = 1.
#include "dot_panel.h"
#include "top_values.h"

namespace leeboard::LEEBOARD_LEVEL {

void head_blocks(const LinearHead& args, int64_t begin, int64_t end) {
  float products[kLinearMaxRows * kPanelFeatures];
  alignas(64) float logits[kLinearMaxRows * kTopBlock];
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block * kTopBlock;
    const int64_t left = args.weight.rows - first;
    const int64_t count = left < kTopBlock ? left : kTopBlock;
    multiply_panel(args.weight, args.packed, args.packed_stride, args.rows, first, first + count,
                   products, [&](int64_t v, int64_t n, const float* values) {
                     for (int64_t m = 0; m < args.rows; ++m) {
                       std::memcpy(logits + m * kTopBlock + v - first, values + m * kPanelFeatures,
                                   static_cast<size_t>(n) * sizeof(float));
                     }
                   });
    for (int64_t m = 0; m < args.rows; ++m) {
      const int64_t at = block * args.rows + m;
      reduce_block(logits + m * kTopBlock, count, first, args.k, args.block_value + at * args.k,
                   args.block_index + at * args.k,
                   args.block_sum == nullptr ? nullptr : args.block_sum + at);
    }
  }
}

}  // namespace leeboard::LEEBOARD_LEVEL

// Joins what a head kept of its blocks, in their order.
#include "level.h"
#include "top_values.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

// log sum_v exp(logit[v]) from the blocks' largest values and sums; `most` is the largest of all.
LB_INLINE float log_sum_exp(const LinearHead& args, int64_t row, float most) {
  if (!std::isfinite(most)) return most;
  double total = 0.0;
  for (int64_t block = 0; block < args.blocks(); ++block) {
    const int64_t at = block * args.rows + row;
    const float largest = args.block_value[at * args.k];
    // In a block of nothing but -inf the sum is NaN; it has no part in the total.
    if (largest == -INFINITY) continue;
    total +=
        static_cast<double>(args.block_sum[at]) * std::exp(static_cast<double>(largest) - most);
  }
  return static_cast<float>(most + std::log(total));
}

}  // namespace

void head_join(const LinearHead& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    float* value = args.value + row * args.k;
    int64_t* index = args.index + row * args.k;
    int64_t held = 0;
    for (int64_t block = 0; block < args.blocks(); ++block) {
      const int64_t at = (block * args.rows + row) * args.k;
      const int64_t left = args.weight.rows - block * kTopBlock;
      for (int64_t i = 0; i < args.k && i < left; ++i) {
        const float candidate = args.block_value[at + i];
        // What follows in this block is no larger.
        if (held == args.k && !beats(candidate, value[args.k - 1])) break;
        keep_top(value, index, held, args.k, candidate, args.block_index[at + i]);
      }
    }
    if (args.lse != nullptr) args.lse[row] = log_sum_exp(args, row, value[0]);
    if (args.d2t == nullptr) continue;
    for (int64_t i = 0; i < args.k; ++i) index[i] += args.d2t[index[i]];
  }
}

}  // namespace leeboard::LEEBOARD_LEVEL

// Greedy verification: follows the target's own tokens through the draft.
#include "draft_tree.h"
#include "level.h"

namespace leeboard::LEEBOARD_LEVEL {

void verify_greedy(const VerifyGreedy& args, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; ++b) {
    const Draft draft(args.tree, b);
    const int64_t* target = args.target + b * args.target_stride;
    int64_t wanted = target[0];
    walk(draft, args.out, b, [&](int64_t i) {
      if (draft.tokens[i] != wanted) return false;
      wanted = target[i + 1];
      return true;
    });
    args.out.next_token[b] = wanted;
  }
}

}  // namespace leeboard::LEEBOARD_LEVEL

// The walk through a draft that both verification rules share.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

// One sequence of a DraftTree.
struct Draft {
  int64_t nodes;
  const int64_t* tokens;
  const int64_t* parents;

  LB_INLINE Draft(const DraftTree& tree, int64_t sequence)
      : nodes(tree.nodes),
        tokens(tree.tokens + sequence * tree.tokens_stride),
        parents(tree.parents == nullptr ? nullptr : tree.parents + sequence * tree.parents_stride) {
  }

  // Parents are compared only, never used as an index: whatever they hold, no memory is at risk.
  LB_INLINE int64_t parent(int64_t i) const { return parents == nullptr ? i - 1 : parents[i]; }
};

// Calls accept(i) for every child of the current node, in order; where it returns true, node i
// becomes the current one. A parent precedes its child, so one pass meets them all. Writes how many
// nodes were accepted and which; returns the last one, or -1.
template <class Accept>
LB_INLINE int64_t walk(const Draft& draft, const VerifyOutputs& out, int64_t sequence,
                       Accept accept) {
  int64_t* path = out.path == nullptr ? nullptr : out.path + sequence * draft.nodes;
  int64_t node = -1;
  int64_t accepted = 0;
  for (int64_t i = 0; i < draft.nodes; ++i) {
    if (draft.parent(i) != node || !accept(i)) continue;
    node = i;
    if (path != nullptr) path[accepted] = i;
    ++accepted;
  }
  out.accepted[sequence] = accepted;
  if (path != nullptr) {
    for (int64_t i = accepted; i < draft.nodes; ++i) path[i] = -1;
  }
  return node;
}

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

// What the bindings of sparse attention share: plans and the arguments of a call.
#pragma once

#include <cstdint>
#include <vector>

#include "heads_view.h"

namespace leeboard {

// The keys that each query row sees, checked when it is made and never changed.
struct AttentionPlan {
  int64_t queries = 0;
  int64_t keys = 0;
  std::vector<int64_t> offsets;  // [queries + 1]
  std::vector<int64_t> spans;    // pairs [begin, end)
};

}  // namespace leeboard

// Gradients of grouped-query attention under a structured pattern.
#include "level.h"
#include "simd.h"

namespace leeboard::LEEBOARD_LEVEL {}  // namespace leeboard::LEEBOARD_LEVEL

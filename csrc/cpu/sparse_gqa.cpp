// Grouped-query attention under a structured pattern: only the keys that a row sees are touched.
#include "level.h"
#include "simd.h"

namespace leeboard::LEEBOARD_LEVEL {}  // namespace leeboard::LEEBOARD_LEVEL

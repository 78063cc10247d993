// Instruction-set levels and the table of kernels that each level provides.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace leeboard {

// Ascending: a machine that runs a level runs every lower one.
enum class Isa : int { kBase = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3 };
inline constexpr int kIsaCount = 4;

const char* isa_name(Isa isa);

// The highest level that was built and that this processor runs.
Isa isa_native();

// Kernels of a level; null when the level was not built for this architecture.
const KernelTable* kernel_table(Isa isa);

}  // namespace leeboard

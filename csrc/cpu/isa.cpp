#include "isa.h"

namespace leeboard {

#define LEEBOARD_DECLARE(level)   \
  namespace level {               \
  extern const KernelTable table; \
  }
LEEBOARD_DECLARE(base)
#if defined(LEEBOARD_HAS_avx2)
LEEBOARD_DECLARE(avx2)
#endif
#if defined(LEEBOARD_HAS_avx512)
LEEBOARD_DECLARE(avx512)
#endif
#if defined(LEEBOARD_HAS_avx512_bf16)
LEEBOARD_DECLARE(avx512_bf16)
#endif
#undef LEEBOARD_DECLARE

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kBase:
      return "base";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
  }
  return "unknown";
}

const KernelTable* kernel_table(Isa isa) {
  switch (isa) {
    case Isa::kBase:
      return &base::table;
#if defined(LEEBOARD_HAS_avx2)
    case Isa::kAvx2:
      return &avx2::table;
#endif
#if defined(LEEBOARD_HAS_avx512)
    case Isa::kAvx512:
      return &avx512::table;
#endif
#if defined(LEEBOARD_HAS_avx512_bf16)
    case Isa::kAvx512Bf16:
      return &avx512_bf16::table;
#endif
    default:
      return nullptr;
  }
}

namespace {

bool processor_runs(Isa isa) {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd");
  switch (isa) {
    case Isa::kBase:
      return true;
    case Isa::kAvx2:
      return avx2;
    case Isa::kAvx512:
      return avx512;
    case Isa::kAvx512Bf16:
      return avx512 && __builtin_cpu_supports("avx512bf16");
  }
  return false;
#else
  return isa == Isa::kBase;
#endif
}

}  // namespace

Isa isa_native() {
  for (int level = kIsaCount - 1; level > 0; --level) {
    const Isa isa = static_cast<Isa>(level);
    if (kernel_table(isa) != nullptr && processor_runs(isa)) return isa;
  }
  return Isa::kBase;
}

}  // namespace leeboard

#include "parallel.h"

#include <dlfcn.h>

#include <stdexcept>

namespace leeboard {
namespace {

// torch's stable C ABI: torch/csrc/stable/c/shim.h, since torch 2.10.
using TorchParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain,
                                     RangeFunction function, void* context);

TorchParallelFor find_thread_pool() {
#if defined(__APPLE__)
  const char* name = "libtorch_cpu.dylib";
#else
  const char* name = "libtorch_cpu.so";
#endif
  // torch is already loaded; RTLD_NOLOAD never brings in a second copy.
  void* library = dlopen(name, RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return nullptr;
  return reinterpret_cast<TorchParallelFor>(dlsym(library, "torch_parallel_for"));
}

TorchParallelFor thread_pool() {
  static const TorchParallelFor found = find_thread_pool();
  return found;
}

}  // namespace

bool has_thread_pool() { return thread_pool() != nullptr; }

void parallel_ranges(int64_t count, int64_t grain, RangeFunction function, void* context) {
  const TorchParallelFor pool = thread_pool();
  if (pool == nullptr) {
    function(0, count, context);
  } else if (pool(0, count, grain, function, context) != 0) {
    throw std::runtime_error("torch_parallel_for failed");
  }
}

}  // namespace leeboard

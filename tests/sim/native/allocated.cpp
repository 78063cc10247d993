#include "allocated.h"

#include <malloc.h>

#include <atomic>
#include <cstdlib>
#include <new>

namespace {
std::atomic<size_t> held{0};
}

namespace leeboard::sim::test {
size_t allocated() { return held.load(std::memory_order_relaxed); }
}  // namespace leeboard::sim::test

void* operator new(size_t size) {
  void* memory = std::malloc(size);
  if (memory == nullptr) throw std::bad_alloc();
  held.fetch_add(malloc_usable_size(memory), std::memory_order_relaxed);
  return memory;
}

void operator delete(void* memory) noexcept {
  if (memory != nullptr) held.fetch_sub(malloc_usable_size(memory), std::memory_order_relaxed);
  std::free(memory);
}

void operator delete(void* memory, size_t) noexcept { operator delete(memory); }

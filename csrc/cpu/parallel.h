// Ranges of work on torch's own thread pool.
#pragma once

#include <cstdint>

namespace leeboard {

using RangeFunction = void (*)(int64_t begin, int64_t end, void* context);

// Whether torch's pool was found; without it every range runs on the calling thread.
bool has_thread_pool();

void parallel_ranges(int64_t count, int64_t grain, RangeFunction function, void* context);

// Calls body(begin, end) on disjoint ranges that cover [0, count), none shorter than `grain` but
// the last. body must not throw.
template <class Body>
void parallel_for(int64_t count, int64_t grain, Body body) {
  if (count <= 0) return;
  if (count <= grain) {
    body(int64_t{0}, count);
    return;
  }
  parallel_ranges(
      count, grain,
      [](int64_t begin, int64_t end, void* context) { (*static_cast<Body*>(context))(begin, end); },
      &body);
}

// The least work, in bytes touched, that is worth a parallel region.
inline constexpr int64_t kParallelBytes = 64 * 1024;

// Items of `bytes_each` that make up kParallelBytes.
inline int64_t grain_of(int64_t bytes_each) {
  const int64_t grain = kParallelBytes / (bytes_each > 0 ? bytes_each : 1);
  return grain > 0 ? grain : 1;
}

// Outputs of at least this many bytes are written around the cache: with their input they overflow
// a last-level cache of 32 MB. A constant, since what a virtual machine reports is often wrong.
inline constexpr int64_t kStreamBytes = int64_t{16} << 20;

}  // namespace leeboard

// Ranges of work on torch's own thread pool.
#pragma once

#include <sched.h>

#include <cstdint>

#include "kernels.h"

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

// Calls body(team) on every thread of the pool at once, in one parallel region: members may wait
// for each other (see team.h). Where the pool gives one thread, or is busy, the team has one
// member. Work of few bytes gets one member too.
template <class Body>
void run_team(int64_t bytes, Body body) {
  // The pool cuts this range into one piece a thread; the first piece tells how many there are.
  constexpr int64_t kRange = int64_t{1} << 16;
  Team team{0, 0, 0};
  if (bytes < kParallelBytes) {
    team.size = 1;
    body(team);
    return;
  }
  parallel_for(kRange, 1, [&](int64_t begin, int64_t end) {
    if (begin == 0) {
      __atomic_store_n(&team.size, (kRange + end - 1) / end, __ATOMIC_RELEASE);
    } else {
      while (__atomic_load_n(&team.size, __ATOMIC_ACQUIRE) == 0) sched_yield();
    }
    body(team);
  });
}

// Items of `bytes_each` that make up kParallelBytes.
inline int64_t grain_of(int64_t bytes_each) {
  const int64_t grain = kParallelBytes / (bytes_each > 0 ? bytes_each : 1);
  return grain > 0 ? grain : 1;
}

// Outputs of at least this many bytes are written around the cache: with their input they overflow
// a last-level cache of 32 MB. A constant, since what a virtual machine reports is often wrong.
inline constexpr int64_t kStreamBytes = int64_t{16} << 20;

}  // namespace leeboard

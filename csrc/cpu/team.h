// How the members of a team share the phases of a kernel: units are claimed one by one, so a member
// that is held up takes fewer; a barrier ends the phase. Which member computes a unit changes
// nothing in the result.
#pragma once

#include <sched.h>

#include "simd.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

// A cache line of its own, zero before the phase begins.
struct alignas(64) Counter {
  int64_t next;
};

LB_INLINE void pause_thread() {
#if defined(__SSE2__)
  _mm_pause();
#endif
}

// Returns when every member has arrived; what they wrote is visible then.
LB_INLINE void wait_for_team(Team& team) {
  if (team.size == 1) return;
  const int64_t now = __atomic_load_n(&team.generation, __ATOMIC_ACQUIRE);
  if (__atomic_add_fetch(&team.arrived, 1, __ATOMIC_ACQ_REL) == team.size) {
    __atomic_store_n(&team.arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&team.generation, now + 1, __ATOMIC_RELEASE);
    return;
  }
  // Most waits are shorter than giving the processor away; a longer one gives it to a member that
  // has none.
  constexpr int kSpins = 4096;
  for (int spins = 0; __atomic_load_n(&team.generation, __ATOMIC_ACQUIRE) == now; ++spins) {
    if (spins < kSpins) {
      pause_thread();
    } else {
      sched_yield();
    }
  }
}

// Calls unit(i) for i < count, each once in the whole team.
template <class Unit>
LB_INLINE void share_phase(Team& team, Counter& counter, int64_t count, Unit unit) {
  for (;;) {
    const int64_t i = __atomic_fetch_add(&counter.next, 1, __ATOMIC_RELAXED);
    if (i >= count) break;
    unit(i);
  }
  wait_for_team(team);
}

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

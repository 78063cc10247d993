// Collectives as message schedules: what each rank sends and receives in which round.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "program.h"

namespace leeboard::sim {

enum class Algorithm : uint32_t {
  kAuto = 0,  // the platform's table chooses
  kRing = 1,
  kRecursiveDoubling =
      2,              // all_reduce, all_gather, barrier (dissemination), reduce_scatter (halving)
  kBinomialTree = 3,  // broadcast, reduce, gather, scatter; all_reduce, barrier: up, then down
  kDirect = 4,        // everything at once: star, full exchange
  kPairwise = 5,      // all_to_all: P - 1 rounds of one partner each
  kHierarchical = 6,  // within islands, across, within
  kGlooRing = 7,      // all_reduce as gloo does it: segmented ring with receives posted ahead
};
inline constexpr int kAlgorithms = 8;

struct Transfer {
  uint32_t peer;  // rank in the group
  uint64_t bytes;
};

// A rank enters round k + 1 when its sends of round k have left and its receives have come in.
struct Round {
  std::vector<Transfer> sends, recvs;
  // Bytes that the rank combines after the receives, before the next round.
  uint64_t reduced = 0;
};

// One collective of one group, the same for all its ranks.
struct Schedule {
  Collective collective;
  Algorithm algorithm;
  uint32_t ranks;
  uint32_t root;
  uint64_t bytes;
  // Uneven all-to-all: ranks x ranks bytes, row = source; empty: even.
  std::span<const uint64_t> sizes;
  // Hierarchical: island of each rank of the group, numbered from 0; empty: one island.
  std::span<const uint32_t> islands;

  uint32_t rounds(uint32_t rank) const;
  // Writes round k < rounds(rank) of `rank`; reuses the vectors' storage.
  void round(uint32_t rank, uint32_t k, Round& out) const;
  // Receives of rounds up to k + ahead() are posted when round k begins.
  uint32_t ahead() const;
};

// Whether a collective has this algorithm, for this group.
bool supports(Collective collective, Algorithm algorithm);
const char* name_of(Collective collective);
const char* name_of(Algorithm algorithm);

}  // namespace leeboard::sim

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
  kPairwise = 5,      // all_to_all, reduce_scatter: P - 1 rounds of one partner each
  kHierarchical = 6,  // within islands, across, within
  kGlooRing = 7,  // all_reduce, all_gather, reduce as gloo does them: ring, two pieces under way
  kGlooTree = 8,  // broadcast as gloo does it: a tree whose ranks send to all below them at once
};
inline constexpr int kAlgorithms = 9;

// Chains (broadcast and reduce by ring) pass on pieces of at most this many bytes.
inline constexpr uint64_t kChainSegment = uint64_t{1} << 19;

struct Transfer {
  uint32_t peer;  // rank in the group
  uint64_t bytes;
};

// A rank enters round k + depth() when its sends of round k have left and its receives have come
// in.
struct Round {
  std::vector<Transfer> sends, recvs;
  // Bytes that the rank combines after the receives, before it goes on.
  uint64_t reduced = 0;
};

// How the ranks of a group lie on islands, laid out once, so that rounds are found without a
// search.
class Islands {
 public:
  // Island of each rank: equal numbers are one island. Empty: all `ranks` are on one.
  Islands(std::span<const uint32_t> island_of, uint32_t ranks);

  uint32_t count() const { return static_cast<uint32_t>(begin_.size()) - 1; }
  // Whether all islands have as many ranks.
  bool equal() const { return !columns_.empty(); }
  uint32_t size(uint32_t island) const { return begin_[island + 1] - begin_[island]; }
  uint32_t island(uint32_t rank) const { return island_[rank]; }
  // Place of a rank among those of its island.
  uint32_t index(uint32_t rank) const { return index_[rank]; }
  // Ranks of an island, ascending.
  std::span<const uint32_t> members(uint32_t island) const {
    return {members_.data() + begin_[island], size(island)};
  }
  // If equal: the ranks that have this place on their islands, ascending.
  std::span<const uint32_t> column(uint32_t index) const {
    return {columns_.data() + uint64_t{index} * count(), count()};
  }
  // Place of a rank in its column.
  uint32_t row(uint32_t rank) const { return row_[rank]; }

 private:
  std::vector<uint32_t> island_, index_, begin_, members_, columns_, row_;
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
  // Hierarchical: how the group lies on islands.
  const Islands* islands = nullptr;

  uint32_t rounds(uint32_t rank) const;
  // Writes round k < rounds(rank) of `rank`; reuses the vectors' storage.
  void round(uint32_t rank, uint32_t k, Round& out) const;
  // Rounds that are under way at once.
  uint32_t depth() const;
};

// Whether a collective has this algorithm; then it has it for any group.
bool supports(Collective collective, Algorithm algorithm);
const char* name_of(Collective collective);
const char* name_of(Algorithm algorithm);

}  // namespace leeboard::sim

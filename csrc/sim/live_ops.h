// Ops of programs that grow while they run: they stay where they are, in chunks of one rank each,
// and count from the rank's first one.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "program.h"

namespace leeboard::sim {

class LiveOps {
 public:
  // What an uneven all-to-all carries, of which each member tells its own row and column.
  struct Table {
    uint32_t algorithm = 0;
    uint32_t tellers = 0;         // members that have told
    std::vector<uint64_t> sizes;  // ranks x ranks, row = source
    std::vector<bool> told;       // by which members
  };

  explicit LiveOps(uint32_t ranks) : ranks_(ranks) {}

  void push(uint32_t rank, const Op& op) {
    Rank& r = ranks_[rank];
    if (r.count % kChunk == 0) {
      r.chunks.push_back(std::make_unique<Chunk>());
      r.chunks.back()->base = static_cast<uint32_t>(r.count);
    }
    r.chunks.back()->ops[r.count++ % kChunk] = op;
  }

  // The next ops of a rank, as many as lie in one piece: code[pc .. end); false: there are none.
  bool next(uint32_t rank, const Op*& code, uint64_t& pc, uint64_t& end) {
    Rank& r = ranks_[rank];
    if (r.taken == r.count) return false;
    code = r.chunks[r.taken / kChunk]->ops.data();
    pc = r.taken % kChunk;
    end = std::min<uint64_t>(kChunk, pc + (r.count - r.taken));
    r.taken += end - pc;
    return true;
  }

  // The place of an op of here among those of its rank.
  static uint32_t index(const Op* op) {
    const auto address = reinterpret_cast<uintptr_t>(op);
    const auto* chunk = reinterpret_cast<const Chunk*>(address & ~(sizeof(Chunk) - 1));
    return chunk->base + static_cast<uint32_t>(op - chunk->ops.data());
  }

  uint64_t count(uint32_t rank) const { return ranks_[rank].count; }
  uint64_t taken(uint32_t rank) const { return ranks_[rank].taken; }
  const Op& op(uint32_t rank, uint64_t index) const {
    return ranks_[rank].chunks[index / kChunk]->ops[index % kChunk];
  }

  // The rank gets no more ops.
  bool& over(uint32_t rank) { return ranks_[rank].over; }
  // It wants to be in step with the others when it has done all.
  bool& looks(uint32_t rank) { return ranks_[rank].looks; }

  // A receive with a slot has met a message: of whom, and by which of its ops.
  void met(uint32_t rank, int32_t slot, uint32_t source, uint32_t op) {
    auto& met = ranks_[rank].met;
    if (met.size() <= static_cast<size_t>(slot)) met.resize(static_cast<size_t>(slot) + 1);
    met[static_cast<size_t>(slot)] = {source, op};
  }
  std::pair<uint32_t, uint32_t> met(uint32_t rank, int32_t slot) const {
    const auto& met = ranks_[rank].met;
    return static_cast<size_t>(slot) < met.size() ? met[static_cast<size_t>(slot)]
                                                  : std::pair{UINT32_MAX, UINT32_MAX};
  }

  uint32_t add_table(Table table) {
    tables_.push_back(std::move(table));
    return static_cast<uint32_t>(tables_.size() - 1);
  }
  Table& table(uint64_t index) { return tables_[index]; }
  const std::deque<Table>& tables() const { return tables_; }

  // What ranks have told that cannot be; empty: nothing.
  std::string contradiction;

 private:
  static constexpr size_t kChunk = 63;

  struct alignas(2048) Chunk {
    uint32_t base = 0;
    alignas(32) std::array<Op, kChunk> ops;
  };
  static_assert(sizeof(Chunk) == 2048);

  struct Rank {
    std::vector<std::unique_ptr<Chunk>> chunks;
    std::vector<std::pair<uint32_t, uint32_t>> met;  // by slot
    uint64_t count = 0, taken = 0;
    bool over = false, looks = false;
  };

  std::vector<Rank> ranks_;
  std::deque<Table> tables_;
};

}  // namespace leeboard::sim

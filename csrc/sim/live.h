// A run whose program is written while it goes on: what ranks do is appended rank by rank, checked,
// kept, and done by an engine, as if all had been known from the start.
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine.h"
#include "live_ops.h"

namespace leeboard::sim {

class Live {
 public:
  // Throws std::runtime_error if ranks and platform do not fit together.
  Live(uint32_t ranks, Platform platform, Options options);

  // All that append throw std::invalid_argument for what cannot be meant; then nothing is appended.
  void add(uint32_t rank, const Op& op);
  // With a slot of its own, which is returned.
  int32_t begin(uint32_t rank, Op op);
  // Slot, or kNoSlot for a blocking one.
  int32_t collective(uint32_t rank, Op op, bool blocking);
  // sends, recvs: bytes to and from each member of the group.
  int32_t all_to_all(uint32_t rank, uint32_t group, const std::vector<uint64_t>& sends,
                     const std::vector<uint64_t>& recvs, uint32_t algorithm, bool blocking);
  void wait(uint32_t rank, int32_t slot);
  // `caller`: the rank that says so; kNil: the one whose turn it is.
  uint32_t group(const std::string& name, const std::vector<int32_t>& members, uint32_t caller);

  // All of these return the rank whose turn it is then, or kNil: nothing can go on.
  uint32_t run(uint32_t rank);
  uint32_t look(uint32_t rank);
  uint32_t park(uint32_t rank);
  uint32_t finish(uint32_t rank);
  void unpark(uint32_t rank, Time at);

  uint32_t ranks() const { return program_.ranks(); }
  // It waits for another rank to unpark it, and none has yet.
  bool parked(uint32_t rank) const { return ranks_[rank].parked; }
  Time clock(uint32_t rank) const;
  // Which of its ops are over at that clock: so many from its first one.
  uint64_t place(uint32_t rank) const;
  bool done(uint32_t rank, int32_t slot) const;
  // Of a send: a number of its own among those of all ranks.
  uint64_t serial(uint32_t rank, int32_t slot) const;
  // Of a receive that is over: the rank that sent, and the serial.
  std::pair<uint32_t, uint64_t> met(uint32_t rank, int32_t slot) const;

  // Once.
  Outcome outcome();
  const Engine& engine() const { return engine_; }
  const Platform& platform() const { return platform_; }
  // What all ranks have been told to do so far.
  Program program() const;

 private:
  struct Slot {
    uint32_t op = 0;
    bool free = true;
    bool send = false, receive = false;
  };
  struct Rank {
    std::vector<Slot> slots;
    std::vector<int32_t> free;
    bool parked = false;
  };
  struct Member {
    uint32_t place, count;  // collectives so far
  };
  struct Group {
    uint32_t number, first;  // rank that named it
    std::vector<int32_t> members;
  };

  static constexpr uint64_t kMostBytes = uint64_t{1} << 62;
  [[noreturn]] static void refuse(const std::string& text) { throw std::invalid_argument(text); }

  static void check(const Op& op, uint32_t ranks);
  static void check_algorithm(Collective collective, uint32_t algorithm);
  const Rank& rank_of(uint32_t rank) const;
  Rank& rank_of(uint32_t rank) { return const_cast<Rank&>(std::as_const(*this).rank_of(rank)); }
  const Slot& slot_of(uint32_t rank, int32_t slot) const;
  Member& member_of(uint32_t rank, uint32_t group);
  uint32_t size_of(uint32_t group) const;
  uint32_t table_of(uint32_t group, const Member& member, const Op& op,
                    const std::vector<uint64_t>& sends, const std::vector<uint64_t>& recvs);
  std::vector<uint64_t> layout() const;

  Platform platform_;
  Program program_;
  LiveOps ops_;
  Engine engine_;
  std::vector<Rank> ranks_;
  std::vector<Member> world_;
  std::unordered_map<uint64_t, Member> members_;  // rank << 32 | group
  std::map<std::string, Group> groups_;
  std::unordered_map<uint64_t, uint32_t> tables_;  // group << 32 | which collective of it
  uint32_t turn_ = kNil;                           // the rank that runs
  bool begun_ = false;
  uint64_t count_ = 0;
};

}  // namespace leeboard::sim

#include "live.h"

#include <algorithm>
#include <numeric>

namespace leeboard::sim {
namespace {

constexpr uint64_t kMostOps = UINT32_MAX;

Program empty(uint32_t ranks) {
  Program program;
  program.begin.resize(ranks);
  program.end.resize(ranks);
  program.group_offsets = {0, ranks};
  program.group_members.resize(ranks);
  std::iota(program.group_members.begin(), program.group_members.end(), 0);
  return program;
}

}  // namespace

Live::Live(uint32_t ranks, Platform platform, Options options)
    : platform_(std::move(platform)),
      program_(empty(ranks)),
      ops_(ranks),
      engine_(program_, platform_, std::move(options)),
      ranks_(ranks),
      world_(ranks) {
  for (uint32_t rank = 0; rank < ranks; ++rank) world_[rank] = {rank, 0};
  engine_.follow(ops_);
}

const Live::Rank& Live::rank_of(uint32_t rank) const {
  if (rank >= ranks_.size()) {
    refuse("rank: got " + std::to_string(rank) + ", expected less than " +
           std::to_string(ranks_.size()));
  }
  return ranks_[rank];
}

const Live::Slot& Live::slot_of(uint32_t rank, int32_t slot) const {
  const auto& slots = rank_of(rank).slots;
  if (slot < 0 || static_cast<size_t>(slot) >= slots.size()) {
    refuse("slot: rank " + std::to_string(rank) + " has none of number " + std::to_string(slot));
  }
  return slots[static_cast<size_t>(slot)];
}

// Of what is no collective.
void Live::check(const Op& op, uint32_t ranks) {
  const auto peered = [&](bool any) {
    if (op.peer < (any ? kAny : 0) || op.peer >= static_cast<int32_t>(ranks)) {
      refuse("peer: got " + std::to_string(op.peer) + ", expected a rank below " +
             std::to_string(ranks));
    }
    if (op.tag < (any ? kAny : 0)) refuse("tag: got " + std::to_string(op.tag));
  };
  const auto timed = [&] {
    if (op.a > kLongest) refuse("ps: got " + std::to_string(op.a) + ", more than 106 days");
  };
  const auto sized = [&] {
    if (op.a > kMostBytes) refuse("bytes: got " + std::to_string(op.a) + ", more than 2^62");
  };
  switch (op.kind) {
    case OpKind::kDelay:
    case OpKind::kSleep:
      return timed();
    case OpKind::kCompute:
      if (op.flags >= kRates) {
        refuse("dtype: got " + std::to_string(op.flags) + ", expected less than " +
               std::to_string(kRates));
      }
      return;
    case OpKind::kSend:
      peered(false);
      return sized();
    case OpKind::kRecv:
      peered(true);
      if (op.a != kUnknown) sized();
      return;
    case OpKind::kMark:
      if (op.a >= INT32_MAX) refuse("name: got " + std::to_string(op.a));
      return;
    case OpKind::kAlloc:
    case OpKind::kFree:
      return sized();
    default:
      return;
  }
}

void Live::add(uint32_t rank, const Op& op) {
  rank_of(rank);
  check(op, ranks());
  if (count_ >= kMostOps) throw std::runtime_error("a program of more than 2^32 ops");
  ++count_;
  ops_.push(rank, op);
}

int32_t Live::begin(uint32_t rank, Op op) {
  Rank& r = rank_of(rank);
  if (r.free.empty()) {
    r.free.push_back(static_cast<int32_t>(r.slots.size()));
    r.slots.emplace_back();
  }
  op.slot = r.free.back();
  add(rank, op);
  r.free.pop_back();
  r.slots[static_cast<size_t>(op.slot)] = {static_cast<uint32_t>(ops_.count(rank) - 1), false,
                                           op.kind == OpKind::kSend, op.kind == OpKind::kRecv};
  return op.slot;
}

void Live::wait(uint32_t rank, int32_t slot) {
  if (slot_of(rank, slot).free) {
    refuse("slot: rank " + std::to_string(rank) + " waits for request " + std::to_string(slot) +
           ", which is not outstanding");
  }
  add(rank, {OpKind::kWait, 0, 0, 0, 0, slot, 0, 0});
  ranks_[rank].slots[static_cast<size_t>(slot)].free = true;
  ranks_[rank].free.push_back(slot);
}

uint32_t Live::run(uint32_t rank) {
  rank_of(rank);
  if (begun_ && turn_ != kNil && turn_ != rank) {
    throw std::runtime_error("rank " + std::to_string(rank) + " runs out of turn: it is rank " +
                             std::to_string(turn_) + "'s");
  }
  begun_ = true;
  return turn_ = engine_.go_on();
}

uint32_t Live::look(uint32_t rank) {
  rank_of(rank);
  ops_.looks(rank) = true;
  return run(rank);
}

uint32_t Live::park(uint32_t rank) {
  add(rank, {OpKind::kAwait, 0, 0, 0, 0, kNoSlot, 0, 0});
  ranks_[rank].parked = true;
  return run(rank);
}

void Live::unpark(uint32_t rank, Time at) {
  Rank& r = rank_of(rank);
  if (!r.parked) refuse("rank: " + std::to_string(rank) + " is not parked");
  if (turn_ == kNil) throw std::runtime_error("unpark: no rank has its turn");
  const Time now = engine_.clock(turn_);
  add(turn_,
      {OpKind::kSignal, 0, 0, static_cast<int32_t>(rank), 0, kNoSlot, at > now ? at - now : 0, 0});
  r.parked = false;
}

uint32_t Live::finish(uint32_t rank) {
  rank_of(rank);
  ops_.over(rank) = true;
  return run(rank);
}

Time Live::clock(uint32_t rank) const {
  rank_of(rank);
  return engine_.clock(rank);
}

uint64_t Live::place(uint32_t rank) const {
  rank_of(rank);
  return ops_.taken(rank);
}

bool Live::done(uint32_t rank, int32_t slot) const {
  slot_of(rank, slot);
  return engine_.over(rank, slot);
}

uint64_t Live::serial(uint32_t rank, int32_t slot) const {
  const Slot& s = slot_of(rank, slot);
  if (!s.send) refuse("slot: " + std::to_string(slot) + " is no send");
  return uint64_t{rank} << 32 | s.op;
}

std::pair<uint32_t, uint64_t> Live::met(uint32_t rank, int32_t slot) const {
  if (!slot_of(rank, slot).receive) refuse("slot: " + std::to_string(slot) + " is no receive");
  const auto [source, op] = ops_.met(rank, slot);
  if (source == kNil) refuse("slot: " + std::to_string(slot) + " has met nothing yet");
  return {source, uint64_t{source} << 32 | op};
}

std::vector<uint64_t> Live::layout() const {
  std::vector<uint64_t> begin(ranks() + 1);
  for (uint32_t rank = 0; rank < ranks(); ++rank) begin[rank + 1] = begin[rank] + ops_.count(rank);
  return begin;
}

Outcome Live::outcome() {
  const std::vector<uint64_t> begin = layout();
  Outcome outcome = engine_.finish();
  engine_.lay_out(begin);
  for (Blocked& blocked : outcome.blocked) {
    blocked.op += static_cast<uint32_t>(begin[blocked.rank]);
  }
  return outcome;
}

Program Live::program() const {
  Program program = program_;
  const std::vector<uint64_t> begin = layout();
  program.begin.assign(begin.begin(), begin.end() - 1);
  program.end.assign(begin.begin() + 1, begin.end());
  program.ops.reserve(begin.back());
  for (uint32_t rank = 0; rank < ranks(); ++rank) {
    for (uint64_t i = 0; i < ops_.count(rank); ++i) program.ops.push_back(ops_.op(rank, i));
  }
  for (const LiveOps::Table& table : ops_.tables()) {
    program.size_offsets.push_back(program.sizes.size());
    program.sizes.insert(program.sizes.end(), table.sizes.begin(), table.sizes.end());
  }
  return program;
}

}  // namespace leeboard::sim

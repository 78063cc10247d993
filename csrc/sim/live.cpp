#include "live.h"

#include <algorithm>
#include <numeric>

namespace leeboard::sim {
namespace {

constexpr uint64_t kMostBytes = uint64_t{1} << 62;
constexpr uint64_t kMostOps = UINT32_MAX;

[[noreturn]] void refuse(const std::string& text) { throw std::invalid_argument(text); }

Program empty(uint32_t ranks) {
  Program program;
  program.begin.resize(ranks);
  program.end.resize(ranks);
  program.group_offsets = {0, ranks};
  program.group_members.resize(ranks);
  std::iota(program.group_members.begin(), program.group_members.end(), 0);
  return program;
}

void check(const Op& op, uint32_t ranks) {
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

void check_algorithm(Collective collective, uint32_t algorithm) {
  if (algorithm == 0) return;
  if (algorithm >= kAlgorithms || !supports(collective, static_cast<Algorithm>(algorithm))) {
    refuse(std::string("algorithm: ") + name_of(collective) + " has none of number " +
           std::to_string(algorithm));
  }
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

Live::Rank& Live::rank_of(uint32_t rank) {
  if (rank >= ranks_.size()) {
    refuse("rank: got " + std::to_string(rank) + ", expected less than " +
           std::to_string(ranks_.size()));
  }
  return ranks_[rank];
}

const Live::Slot& Live::slot_of(uint32_t rank, int32_t slot) const {
  const auto& slots = const_cast<Live*>(this)->rank_of(rank).slots;
  if (slot < 0 || static_cast<size_t>(slot) >= slots.size()) {
    refuse("slot: rank " + std::to_string(rank) + " has none of number " + std::to_string(slot));
  }
  return slots[static_cast<size_t>(slot)];
}

uint32_t Live::size_of(uint32_t group) const {
  if (group >= program_.groups()) {
    refuse("group: got " + std::to_string(group) + ", expected less than " +
           std::to_string(program_.groups()));
  }
  return static_cast<uint32_t>(program_.group_offsets[group + 1] - program_.group_offsets[group]);
}

Live::Member& Live::member_of(uint32_t rank, uint32_t group) {
  rank_of(rank);
  size_of(group);
  if (group == 0) return world_[rank];
  const auto member = members_.find(uint64_t{rank} << 32 | group);
  if (member == members_.end()) {
    refuse("group: rank " + std::to_string(rank) + " is not in group " + std::to_string(group));
  }
  return member->second;
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

int32_t Live::collective(uint32_t rank, Op op, bool blocking) {
  const auto group = static_cast<uint32_t>(op.tag);
  Member& member = member_of(rank, group);
  if (op.flags >= kCollectives) refuse("which: got " + std::to_string(op.flags));
  if (op.a > kMostBytes) refuse("bytes: got " + std::to_string(op.a) + ", more than 2^62");
  check_algorithm(static_cast<Collective>(op.flags), static_cast<uint32_t>(op.b));
  if (op.peer < 0 || static_cast<uint32_t>(op.peer) >= size_of(group)) {
    refuse("root: got " + std::to_string(op.peer) + ", expected less than " +
           std::to_string(size_of(group)));
  }
  op.kind = OpKind::kCollective;
  op.slot = kNoSlot;
  int32_t slot = kNoSlot;
  if (blocking) {
    add(rank, op);
  } else {
    slot = begin(rank, op);
  }
  ++member.count;
  return slot;
}

// The table of this call, in which the rank has told what it knows: number + 1.
uint32_t Live::table_of(uint32_t group, const Member& member, const Op& op,
                        const std::vector<uint64_t>& sends, const std::vector<uint64_t>& recvs) {
  const uint32_t size = size_of(group), me = member.place;
  const auto [it, fresh] = tables_.try_emplace(uint64_t{group} << 32 | member.count, 0);
  if (fresh) {
    LiveOps::Table table{static_cast<uint32_t>(op.b), 0,
                         std::vector<uint64_t>(uint64_t{size} * size), std::vector<bool>(size)};
    // A hierarchy would have to know the whole table before all have come.
    if (table.algorithm == 0 && engine_.choose(op, size) == Algorithm::kHierarchical) {
      table.algorithm = static_cast<uint32_t>(Algorithm::kPairwise);
    }
    it->second = ops_.add_table(std::move(table));
  }
  LiveOps::Table& table = ops_.table(it->second);
  const auto name = [&](uint32_t place) {
    return "rank " + std::to_string(program_.group_members[program_.group_offsets[group] + place]);
  };
  const auto tell = [&](uint32_t source, uint32_t target, uint64_t bytes, uint32_t other) {
    uint64_t& cell = table.sizes[uint64_t{source} * size + target];
    if (table.told[other] && cell != bytes && ops_.contradiction.empty()) {
      const bool sent = source == other;
      ops_.contradiction = "collective number " + std::to_string(member.count) + " of group " +
                           std::to_string(group) + ": all_to_all, in which " + name(source) +
                           " sends " + name(target) + " " + std::to_string(sent ? cell : bytes) +
                           " bytes, but " + name(target) + " expects " +
                           std::to_string(sent ? bytes : cell) + " of it";
    }
    cell = bytes;
  };
  for (uint32_t k = 0; k < size; ++k) {
    tell(me, k, sends[k], k);
    tell(k, me, recvs[k], k);
  }
  table.told[me] = true;
  const uint32_t number = it->second + 1;
  if (++table.tellers == size) tables_.erase(it);
  return number;
}

int32_t Live::all_to_all(uint32_t rank, uint32_t group, const std::vector<uint64_t>& sends,
                         const std::vector<uint64_t>& recvs, uint32_t algorithm, bool blocking) {
  const Member& member = member_of(rank, group);
  const uint32_t size = size_of(group);
  uint64_t total = 0;
  for (const auto* sizes : {&recvs, &sends}) {
    if (sizes->size() != size) {
      refuse("sends, recvs: got " + std::to_string(sizes->size()) + " sizes, expected " +
             std::to_string(size));
    }
    total = 0;
    for (const uint64_t bytes : *sizes) {
      if (bytes > kMostBytes || (total += bytes) > kMostBytes) {
        refuse("sends, recvs: got more than 2^62 bytes");
      }
    }
  }
  if (const uint32_t me = member.place; sends[me] != recvs[me]) {
    refuse("recvs: rank " + std::to_string(rank) + " sends itself " + std::to_string(sends[me]) +
           " bytes and expects " + std::to_string(recvs[me]));
  }
  check_algorithm(Collective::kAllToAll, algorithm);
  if (static_cast<Algorithm>(algorithm) == Algorithm::kHierarchical) {
    refuse("algorithm: hierarchical needs all sizes before all ranks have come");
  }
  Op op{OpKind::kCollective,
        0,
        static_cast<uint16_t>(Collective::kAllToAll),
        0,
        static_cast<int32_t>(group),
        kNoSlot,
        total,
        algorithm};
  const uint32_t table = table_of(group, member, op, sends, recvs);
  op.b = uint64_t{table} << 32 | ops_.table(table - 1).algorithm;
  return collective(rank, op, blocking);
}

uint32_t Live::group(const std::string& name, const std::vector<int32_t>& members,
                     uint32_t caller) {
  const uint32_t who = caller != kNil ? caller : turn_;
  const auto said = [](uint32_t rank, const std::vector<int32_t>& list) {
    std::string text = rank == kNil ? "it was made" : "rank " + std::to_string(rank) + " says";
    text += " of ranks";
    for (size_t i = 0; i < list.size() && i < 16; ++i) {
      text += (i > 0 ? ", " : " ") + std::to_string(list[i]);
    }
    return text + (list.size() > 16 ? ", ..." : "");
  };
  if (const auto found = groups_.find(name); found != groups_.end()) {
    const Group& group = found->second;
    if (group.members != members) {
      refuse("members: of group " + name + " " + said(who, members) + ", but " +
             said(group.first, group.members));
    }
    return group.number;
  }
  std::vector<bool> seen(ranks());
  if (members.empty()) refuse("members: got none");
  for (const int32_t member : members) {
    if (member < 0 || static_cast<uint32_t>(member) >= ranks() || seen[member]) {
      refuse("members: got rank " + std::to_string(member) + " twice, or of " +
             std::to_string(ranks()));
    }
    seen[member] = true;
  }
  Group group{0, who, members};
  const bool world = members.size() == ranks() && std::is_sorted(members.begin(), members.end());
  const bool first = std::none_of(groups_.begin(), groups_.end(),
                                  [](const auto& entry) { return entry.second.number == 0; });
  if (!world || !first) {
    group.number = program_.groups();
    program_.group_members.insert(program_.group_members.end(), members.begin(), members.end());
    program_.group_offsets.push_back(program_.group_members.size());
    for (uint32_t k = 0; k < members.size(); ++k) {
      members_[uint64_t{static_cast<uint32_t>(members[k])} << 32 | group.number] = {k, 0};
    }
    engine_.enrol(group.number);
  }
  return groups_.emplace(name, std::move(group)).first->second.number;
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
  const_cast<Live*>(this)->rank_of(rank);
  return engine_.clock(rank);
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

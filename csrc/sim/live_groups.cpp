// Groups of live runs, and their collectives.
#include <algorithm>

#include "live.h"

namespace leeboard::sim {

void Live::check_algorithm(Collective collective, uint32_t algorithm) {
  if (algorithm == 0) return;
  if (algorithm >= kAlgorithms || !supports(collective, static_cast<Algorithm>(algorithm))) {
    refuse(std::string("algorithm: ") + name_of(collective) + " has none of number " +
           std::to_string(algorithm));
  }
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

}  // namespace leeboard::sim

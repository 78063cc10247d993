// Collectives: ranks meet in an instance, and each walks through its rounds of messages.
#include <algorithm>

#include "engine.h"

namespace leeboard::sim {
namespace {

// For platforms whose table says nothing.
Algorithm usual(Collective collective) {
  switch (collective) {
    case Collective::kAllReduce:
    case Collective::kAllGather:
    case Collective::kReduceScatter:
      return Algorithm::kRing;
    case Collective::kBroadcast:
    case Collective::kReduce:
    case Collective::kGather:
    case Collective::kScatter:
      return Algorithm::kBinomialTree;
    case Collective::kAllToAll:
      return Algorithm::kPairwise;
    case Collective::kBarrier:
      return Algorithm::kRecursiveDoubling;
  }
  throw std::logic_error("an unknown collective");
}

}  // namespace

std::string Engine::describe(const Op& op) const {
  std::string text = name_of(static_cast<Collective>(op.flags));
  text += " of " + std::to_string(op.a) + " bytes";
  if (op.peer > 0) text += ", root " + std::to_string(op.peer);
  const auto algorithm = static_cast<uint32_t>(op.b);
  if (algorithm != 0) text += std::string(", ") + name_of(static_cast<Algorithm>(algorithm));
  return text;
}

Algorithm Engine::choose(const Op& op, uint32_t ranks) const {
  const auto collective = static_cast<Collective>(op.flags);
  auto algorithm = static_cast<Algorithm>(op.b & UINT32_MAX);
  if (algorithm == Algorithm::kAuto) {
    algorithm = usual(collective);
    for (const SelectorRow& row : platform_.selector) {
      if (row.collective == collective && row.min_ranks <= ranks && ranks <= row.max_ranks &&
          row.min_bytes <= op.a && op.a <= row.max_bytes) {
        algorithm = static_cast<Algorithm>(row.algorithm);
        break;
      }
    }
  }
  return algorithm;
}

// Which collective of its group this is to the rank, in the order in which the rank's own thread
// comes to them: streams may take turns that differ from rank to rank.
uint32_t Engine::count_collective(uint32_t rank, const Op& op) {
  if (op.tag == 0) return ranks_[rank].world_collectives++;
  return member_of(rank, op).count++;
}

Engine::Member& Engine::member_of(uint32_t rank, const Op& op) {
  const auto group = static_cast<uint32_t>(op.tag);
  const auto member = membership_.find((uint64_t{rank} << 32) | group);
  if (member == membership_.end()) {
    throw std::runtime_error("rank " + std::to_string(rank) + " calls " + describe(op) +
                             " on group " + std::to_string(group) + ", which it is not in");
  }
  return member->second;
}

uint32_t Engine::instance_of(const Op& op, uint32_t number) {
  const auto group = static_cast<uint32_t>(op.tag);
  const uint64_t begin = program_.group_offsets[group];
  const auto size = static_cast<uint32_t>(program_.group_offsets[group + 1] - begin);
  const uint64_t key = (uint64_t{group} << 32) | number;
  const auto [it, fresh] = instance_index_.try_emplace(key, kNil);
  if (!fresh) return it->second;
  if (free_instance_ != kNil) {
    it->second = free_instance_;
    free_instance_ = instances_[free_instance_].next;
    instances_[it->second] = Instance{};
  } else {
    instances_.emplace_back();
    it->second = static_cast<uint32_t>(instances_.size() - 1);
  }
  Instance& instance = instances_[it->second];
  instance.op = &op;
  instance.group = group;
  instance.number = number;
  instance.here.assign(size, false);
  const auto collective = static_cast<Collective>(op.flags);
  const Algorithm algorithm = choose(op, size);
  if (!supports(collective, algorithm)) {
    throw std::runtime_error(std::string(name_of(collective)) + " has no algorithm " +
                             name_of(algorithm));
  }
  if (algorithm == Algorithm::kHierarchical) {
    std::vector<uint32_t> island_of;
    for (uint32_t k = 0; k < size && !platform_.island.empty(); ++k) {
      const auto member = static_cast<uint32_t>(program_.group_members[begin + k]);
      island_of.push_back(platform_.island[ranks_[member].device]);
    }
    instance.islands = std::make_unique<Islands>(island_of, size);
  }
  instance.schedule = {collective,
                       algorithm,
                       size,
                       static_cast<uint32_t>(std::max(op.peer, 0)),
                       op.a,
                       sizes_of(op, size),
                       instance.islands.get()};
  return it->second;
}

// The table of an uneven all-to-all, if it is one.
std::span<const uint64_t> Engine::sizes_of(const Op& op, uint32_t ranks) const {
  const uint64_t table = op.b >> 32;
  if (table == 0) return {};
  if (live_ != nullptr) return live_->table(table - 1).sizes;
  return {program_.sizes.data() + program_.size_offsets[table - 1], uint64_t{ranks} * ranks};
}

bool Engine::join(uint32_t index, const Op& op) {
  if (!in_step(index)) return false;
  Process& p = processes_[index];
  const uint32_t number = p.stream == 0 ? count_collective(p.rank, op) : p.item.number;
  p.instance = instance_of(op, number);
  p.me = op.tag == 0 ? p.rank : member_of(p.rank, op).place;
  Instance& instance = instances_[p.instance];
  const Op& first = *instance.op;
  // A rank of an uneven all-to-all need not know what all of them send.
  const bool differ = first.a != op.a && op.b >> 32 == 0;
  if (first.flags != op.flags || differ || first.peer != op.peer || first.b != op.b) {
    std::string agree;
    for (uint32_t k = 0; k < instance.here.size(); ++k) {
      if (!instance.here[k] || agree.size() > 60) continue;
      const uint64_t at = program_.group_offsets[instance.group] + k;
      agree += (agree.empty() ? "" : ", ") + std::to_string(program_.group_members[at]);
    }
    throw Mismatch("collective number " + std::to_string(instance.number) + " of group " +
                   std::to_string(instance.group) + ": rank " + std::to_string(p.rank) + " calls " +
                   describe(op) + ", but " + describe(first) + " was called by rank(s) " + agree);
  }
  instance.here[p.me] = true;
  ++instance.joined;
  p.begun = true;
  p.since = p.clock;
  p.busy = devices_[ranks_[p.rank].device].busy_until(p.clock);
  p.round = p.over = 0;
  if (can_fold_) return join_folded(index);
  p.rounds = instance.schedule.rounds(p.me);
  return run_rounds(index);
}

// From round to round, until one of them waits; true when there are no more.
bool Engine::run_rounds(uint32_t index) {
  for (;;) {
    Process& p = processes_[index];
    Instance& instance = instances_[p.instance];
    const Schedule& schedule = instance.schedule;
    if (p.blocked) {
      const uint64_t reduced = p.reduced[p.lane];
      close(p);
      const double rate = platform_.devices[ranks_[p.rank].device].reduce_bandwidth;
      if (reduced > 0 && rate > 0.0) p.clock += duration(static_cast<double>(reduced), rate);
    }
    if (p.round == p.rounds || p.round - p.over == schedule.depth()) {
      if (p.over == p.rounds) break;
      p.lane = p.over++ % kLanes;
      p.blocked = true;
      if (p.pending[p.lane] > 0) return false;
      continue;
    }
    if (!in_step(index)) return false;
    const uint32_t channel = instance.group + 1;
    const auto tag = static_cast<int32_t>(instance.number);
    const uint64_t members = program_.group_offsets[instance.group];
    const auto rank_of = [&](uint32_t member) {
      return instance.group == 0 ? member
                                 : static_cast<uint32_t>(program_.group_members[members + member]);
    };
    schedule.round(p.me, p.round, round_);
    const uint32_t lane = p.round++ % kLanes;
    const Endpoint endpoint{index, kNoSlot, static_cast<uint8_t>(lane), Endpoint::Kind::kProcess};
    p.reduced[lane] = round_.reduced;
    p.pending[lane] = static_cast<uint32_t>(round_.recvs.size() + round_.sends.size());
    Receive posted;
    posted.endpoint = endpoint;
    posted.posted = now_;
    posted.record = p.last;
    posted.tag = tag;
    for (const Transfer& transfer : round_.recvs) {
      posted.source = rank_of(transfer.peer);
      expect(p.rank, posted.source, tag, channel, posted);
    }
    Time ready = now_;
    for (const Transfer& transfer : round_.sends) {
      ready += platform_.protocol.send_overhead;
      offer(p, rank_of(transfer.peer), tag, channel, transfer.bytes, endpoint, ready);
    }
  }
  Process& p = processes_[index];
  Instance& instance = instances_[p.instance];
  if (p.clock > p.since) {
    account(p);
    record(p, RecordKind::kCollective, p.since, p.last, p.op->a, p.op->peer, p.op->tag,
           p.op->flags);
  }
  if (++instance.left == instance.schedule.ranks) {
    instance_index_.erase((uint64_t{instance.group} << 32) | instance.number);
    instance.next = free_instance_;
    free_instance_ = p.instance;
  }
  p.instance = kNil;
  return true;
}

}  // namespace leeboard::sim

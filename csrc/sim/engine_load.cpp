// The two ends of a run: laying out ranks and devices, and summing up.
#include <algorithm>

#include "engine.h"

namespace leeboard::sim {
namespace {

// Where in a program some ops are: counts up to each op, so that a range is asked in one step.
class Where {
 public:
  template <class Test>
  Where(const std::vector<Op>& ops, Test test) {
    if (std::none_of(ops.begin(), ops.end(), test)) return;
    counts_.reserve(ops.size() + 1);
    uint32_t count = 0;
    counts_.push_back(count);
    for (const Op& op : ops) counts_.push_back(count += test(op) ? 1 : 0);
  }

  bool anywhere() const { return !counts_.empty(); }
  bool in(uint64_t begin, uint64_t end) const {
    return anywhere() && counts_[end] > counts_[begin];
  }

 private:
  std::vector<uint32_t> counts_;
};

bool computes(const Op& op) {
  return op.kind == OpKind::kCompute || op.kind == OpKind::kDelay || op.kind == OpKind::kRandom;
}

}  // namespace

void Engine::load() {
  const uint32_t count = program_.ranks();
  const auto device_count = static_cast<uint32_t>(platform_.devices.size());
  const bool placed = !platform_.placement.empty();
  if (placed ? platform_.placement.size() != count : count > device_count) {
    throw std::runtime_error("the program has " + std::to_string(count) + " ranks, the platform " +
                             (placed ? "places " + std::to_string(platform_.placement.size())
                                     : "has " + std::to_string(device_count) + " devices"));
  }
  outcome_.ranks.resize(count);
  ranks_.resize(count);
  slots_.resize(count);
  reported_.resize(count);
  processes_.resize(count);
  devices_.resize(device_count);
  memory_.resize(device_count);
  running_ = count;
  for (const uint32_t rank : options_.marked) {
    if (rank < count) ranks_[rank].marked = true;
  }

  // A device's changes lie together in a copy that is sorted by device.
  device_changes_ = platform_.device_changes;
  std::stable_sort(device_changes_.begin(), device_changes_.end(),
                   [](const Change& x, const Change& y) { return x.index < y.index; });
  for (size_t i = 0; i < device_changes_.size();) {
    size_t j = i;
    while (j < device_changes_.size() && device_changes_[j].index == device_changes_[i].index) ++j;
    devices_[device_changes_[i].index].set_changes({device_changes_.data() + i, j - i});
    i = j;
  }

  const Where beside(program_.ops, [](const Op& op) { return computes(op) && op.stream != 0; });
  const Where calls(program_.ops, [](const Op& op) { return op.kind == OpKind::kCall; });
  const auto has = [&](const Where& where, uint64_t begin, uint64_t end) {
    if (!where.anywhere()) return false;
    if (where.in(begin, end)) return true;
    if (!calls.in(begin, end)) return false;
    return std::any_of(program_.ops.begin() + static_cast<int64_t>(begin),
                       program_.ops.begin() + static_cast<int64_t>(end), [&](const Op& op) {
                         return op.kind == OpKind::kCall && where.in(op.a, op.b);
                       });
  };
  std::vector<uint32_t> tenants(device_count);
  for (uint32_t rank = 0; rank < count; ++rank) {
    const uint64_t begin = program_.begin[rank], end = program_.end[rank];
    Rank& r = ranks_[rank];
    r.device = placed ? platform_.placement[rank] : rank;
    ++tenants[r.device];
    r.shared = has(beside, begin, end);
    r.random = RandomStream(options_.seed, rank);
    processes_[rank].rank = rank;
    processes_[rank].code = program_.ops.data();
    processes_[rank].pc = begin;
    processes_[rank].end = end;
  }
  for (Rank& rank : ranks_) rank.shared = rank.shared || tenants[rank.device] > 1;

  for (uint32_t group = 1; group < program_.groups(); ++group) enrol(group);
  can_fold_ = can_fold();
  queues_.resize(program_.queues.size());
  for (uint32_t queue = 0; queue < queues_.size(); ++queue) {
    const Queue& source = program_.queues[queue];
    queues_[queue].random = RandomStream(mix(options_.seed) ^ source.seed, 0x51000000u + queue);
    const uint64_t first = source.kind == Queue::Kind::kClosed ? source.clients : 1;
    for (uint64_t i = 0; i < first; ++i) issue(queue, 0);
  }
  if (!platform_.link_changes.empty()) {
    push(EventKind::kLinkChange, 0, platform_.link_changes[0].at);
  }
}

void Engine::enrol(uint32_t group) {
  const uint64_t begin = program_.group_offsets[group];
  for (uint64_t i = begin; i < program_.group_offsets[group + 1]; ++i) {
    const auto rank = static_cast<uint32_t>(program_.group_members[i]);
    membership_[(uint64_t{rank} << 32) | group] = {static_cast<uint32_t>(i - begin), 0};
  }
}

// If a process has to do with the collective that `blocked` waits for: which one, who is missing.
void Engine::explain(const Process& p, Blocked& blocked) const {
  if (p.instance == kNil || op_index(p.op) != blocked.op) {
    if (p.items == kNil) return;
    for (const Item& item : items_[p.items]) {
      if (op_index(item.op) == blocked.op) blocked.number = item.number;
    }
    return;
  }
  const Instance& instance = instances_[p.instance];
  blocked.number = instance.number;
  const uint64_t members = program_.group_offsets[instance.group];
  for (uint32_t k = 0; k < instance.here.size() && blocked.missing.size() < 8; ++k) {
    if (!instance.here[k]) {
      blocked.missing.push_back(static_cast<uint32_t>(program_.group_members[members + k]));
    }
  }
}

void Engine::conclude() {
  outcome_.unmatched = mailbox_.size();
  for (const auto& [rank, inbox] : inboxes_) {
    outcome_.unmatched += inbox.messages.size() + inbox.receives.size();
  }
  for (const auto& [pair, order] : orders_) outcome_.unmatched += order.early.size();
  for (uint32_t index = 0; index < processes_.size(); ++index) {
    Process& p = processes_[index];
    if (p.finished || p.stopped) continue;
    // What else it has on a device that is down for good does not wait for anything.
    if (const Time stopped = devices_[ranks_[p.rank].device].stopped; stopped != kNever) {
      stop(p, std::max(stopped, p.since));
      continue;
    }
    Blocked blocked{
        p.rank, static_cast<uint8_t>(std::min(p.stream, int32_t{255})), op_index(p.op), p.since, 0,
        {}};
    if (p.op != nullptr && p.op->kind == OpKind::kWait) {
      for (const Slot& slot : slots_[p.rank]) {
        bool waited = slot.waiter == index;
        for (uint32_t t = slot.ticket; t != kNil && p.stream != 0; t = tickets_[t].next) {
          waited = waited || t == p.item.ticket;
        }
        if (waited) blocked.op = slot.op;
      }
      // A collective is in the hands of a stream.
      for (uint32_t i = processes_[p.rank].next_stream; i != kNil; i = processes_[i].next_stream) {
        explain(processes_[i], blocked);
      }
    }
    explain(p, blocked);
    outcome_.blocked.push_back(std::move(blocked));
  }
  for (const RankTotals& totals : outcome_.ranks) {
    outcome_.makespan = std::max(outcome_.makespan, totals.finish);
  }
  if (!outcome_.blocked.empty()) {
    outcome_.status = Status::kDeadlock;
    outcome_.makespan = std::max(outcome_.makespan, now_);
  }
}

}  // namespace leeboard::sim

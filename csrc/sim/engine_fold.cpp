// A ring of all ranks is a recurrence: a rank's next round begins when its own and its left
// neighbour's messages of this one allow it. Where nothing but the ring can be on its links, the
// recurrence gives the very times that the messages would, without them: P ranks at the same point
// cost one rank's arithmetic, P ranks at different points a few operations each a round.
#include <algorithm>

#include "engine.h"

namespace leeboard::sim {
namespace {

bool is_ring(Collective collective, Algorithm algorithm) {
  return algorithm == Algorithm::kRing &&
         (collective == Collective::kAllReduce || collective == Collective::kAllGather ||
          collective == Collective::kReduceScatter);
}

}  // namespace

// Whether rings may be folded at all: nobody looks at single messages, and whatever a rank has on
// its links belongs to a ring: messages of another collective would come in between.
bool Engine::can_fold() const {
  const Protocol& protocol = platform_.protocol;
  if (alpha_beta_ == nullptr || usage_ != nullptr || timeline_.on() ||
      !platform_.link_changes.empty() || !platform_.device_changes.empty() ||
      protocol.jitter > 0.0 || protocol.loss > 0.0 || program_.ranks() < 3) {
    return false;
  }
  for (const Op& op : program_.ops) {
    switch (op.kind) {
      case OpKind::kSend:
      case OpKind::kRecv:
      case OpKind::kTake:
        return false;
      case OpKind::kCollective:
        if (op.tag != 0 || op.slot >= 0 ||
            !is_ring(static_cast<Collective>(op.flags), choose(op, program_.ranks()))) {
          return false;
        }
        break;
      default:
        break;
    }
    if (op.stream != 0) return false;
  }
  // A device of its own for each rank, a two-way link of its own for each device.
  std::vector<uint32_t> tenants(platform_.devices.size()), links(platform_.devices.size());
  for (const Rank& rank : ranks_) {
    if (++tenants[rank.device] > 1) return false;
  }
  for (const Link& link : platform_.links) {
    if (!link.full_duplex) return false;
    for (const uint32_t end : {link.a, link.b}) {
      if (end < links.size() && ++links[end] > 1) return false;
    }
  }
  // Two devices on one link would share it as first and last.
  return platform_.switches > 0;
}

bool Engine::join_folded(uint32_t index) {
  Process& p = processes_[index];
  Instance& instance = instances_[p.instance];
  entered_.resize(ranks_.size());
  entered_[p.rank] = p.clock;
  p.rounds = 0;
  p.lane = 0;
  p.blocked = true;
  p.pending[0] = 1;
  p.reduced[0] = 0;
  if (instance.joined == instance.schedule.ranks) fold(instance);
  return false;
}

void Engine::fold(Instance& instance) {
  const Schedule& schedule = instance.schedule;
  const Protocol& protocol = platform_.protocol;
  const uint32_t ranks = schedule.ranks;
  const uint32_t rounds = schedule.rounds(0);
  const auto right = [&](uint32_t r) { return r + 1 == ranks ? 0 : r + 1; };
  // Chunks differ in size by a byte at most; where they do not, every rank's round is rank 0's.
  const bool even = schedule.collective == Collective::kAllGather || schedule.bytes % ranks == 0;

  std::vector<Time> at(entered_), up(ranks), down(ranks), there(ranks), back(ranks);
  for (uint32_t r = 0; r < ranks; ++r) {
    const uint32_t a = ranks_[r].device, b = ranks_[right(r)].device;
    const Route& route = routes_.find(a, b);
    up[r] = alpha_beta_->free(route.resources.front());
    down[right(r)] = alpha_beta_->free(route.resources.back());
    there[r] = route.latency;
    back[r] = alpha_beta_->latency(b, a);
  }
  const auto length = [&](uint32_t r, uint64_t bytes) {
    return alpha_beta_->length(ranks_[r].device, ranks_[right(r)].device, bytes);
  };
  const auto reduce_time = [&](uint32_t r, uint64_t reduced) {
    const double rate = platform_.devices[ranks_[r].device].reduce_bandwidth;
    return reduced > 0 && rate > 0.0 ? duration(static_cast<double>(reduced), rate) : Time{0};
  };
  const auto same = [](const auto& values) {
    return std::all_of(values.begin(), values.end(), [&](Time t) { return t == values.front(); });
  };
  schedule.round(0, 0, round_);
  const uint64_t bytes = round_.sends[0].bytes;
  std::vector<Time> takes(ranks), reduces(ranks);
  for (uint32_t r = 0; r < ranks; ++r) {
    takes[r] = length(r, bytes);
    reduces[r] = reduce_time(r, bytes);
  }
  const bool alike = even && same(at) && same(up) && same(down) && same(there) && same(back) &&
                     same(takes) && same(reduces);
  const uint32_t count = alike ? 1 : ranks;

  std::vector<Time> next(count);
  for (uint32_t k = 0; k < rounds; ++k) {
    schedule.round(0, k, round_);
    const bool reducing = round_.reduced > 0;
    if (even) {
      outcome_.messages += ranks;
    }
    for (uint32_t r = 0; r < count; ++r) {
      const uint32_t to = r + 1 == count ? 0 : r + 1;
      uint64_t sent = round_.sends[0].bytes;
      Time take = takes[r];
      if (!even) {
        schedule.round(r, k, uneven_);
        sent = uneven_.sends[0].bytes;
        take = length(r, sent);
        ++outcome_.messages;
        outcome_.ranks[r].sent += sent;
        outcome_.ranks[to].received += sent;
      }
      const Time ready = at[r] + protocol.send_overhead;
      const bool eager = protocol.eager(sent);
      Time leaves = ready;
      if (!eager) {
        const bool asks = protocol.handshake == Handshake::kRequest;
        leaves = std::max(asks ? ready + there[r] + back[r] : ready, at[to] + back[r]);
      }
      const Time begin = std::max(leaves, up[r]);
      up[r] = begin + take;
      down[to] = std::max(begin + there[r], down[to]) + take;
      // The receiver's side of this round; its own send's side comes on top, in its turn.
      next[to] = std::max(next[to], std::max(down[to], at[to]) + protocol.recv_overhead);
      next[r] = std::max(next[r], sent <= protocol.send_buffer ? leaves : up[r]);
    }
    for (uint32_t r = 0; r < count; ++r) {
      at[r] = std::max(at[r], next[r]);
      if (!even || reducing) {
        at[r] += even ? reduces[r] : reduce_time(r, reduced_by(schedule, r, k));
      }
      next[r] = 0;
    }
    if (options_.interrupted && (k & 1023) == 0 && options_.interrupted()) throw Interrupted();
  }
  for (uint32_t r = 0; r < ranks; ++r) {
    const uint32_t from = alike ? 0 : r;
    const Route& route = routes_.find(ranks_[r].device, ranks_[right(r)].device);
    alpha_beta_->free(route.resources.front()) = up[from];
    alpha_beta_->free(route.resources.back()) = down[alike ? 0 : right(r)];
    if (even) {
      outcome_.ranks[r].sent += rounds * bytes;
      outcome_.ranks[r].received += rounds * bytes;
    }
    note(at[from], r);
    resolve_process(r, 0, at[from], kNoRecord);
  }
}

uint64_t Engine::reduced_by(const Schedule& schedule, uint32_t rank, uint32_t round) {
  schedule.round(rank, round, uneven_);
  return uneven_.reduced;
}

}  // namespace leeboard::sim

#include "flow.h"

#include <algorithm>
#include <limits>

namespace leeboard::sim {
namespace {

// The timer of the next completion among those that share; the others carry a pair: the end of one
// that is alone, or of its overhead.
constexpr uint64_t kCompletion = uint64_t{1} << 40;
constexpr uint64_t kAlone = uint64_t{1} << 41;

std::vector<double> capacities_of(const Platform& platform) {
  std::vector<double> capacities;
  for (const Link& link : platform.links) {
    capacities.insert(capacities.end(), 2, link.bandwidth * platform.protocol.goodput);
  }
  return capacities;
}

double limit_of(const Protocol& protocol) {
  return protocol.rate_limit > 0.0 ? protocol.rate_limit : std::numeric_limits<double>::infinity();
}

}  // namespace

FlowNetwork::FlowNetwork(const Platform& platform, Routes& routes, NetworkSink& sink, Usage* usage)
    : platform_(platform),
      routes_(routes),
      sink_(sink),
      usage_(usage),
      shares_(capacities_of(platform), limit_of(platform.protocol)),
      services_(shares_.unlimited() + 1),
      users_(2 * platform.links.size(), 0),
      owner_(2 * platform.links.size(), kNil),
      ends_(shares_.unlimited() + 1) {
  if (usage_ != nullptr) {
    load_.resize(2 * platform.links.size());
    load_since_.resize(2 * platform.links.size());
  }
}

uint32_t FlowNetwork::pair_of(uint32_t source, uint32_t target) {
  const auto [it, fresh] =
      index_.try_emplace((uint64_t{source} << 32) | target, static_cast<uint32_t>(pairs_.size()));
  if (!fresh) return it->second;
  const Route& route = routes_.find(source, target);
  std::vector<MaxMin::Share> shares;
  for (const ResourceId resource : route.resources) shares.push_back({resource, 1.0});
  const double back = platform_.protocol.cross_traffic;
  if (back > 0.0) {
    for (const ResourceId resource : routes_.find(target, source).resources) {
      shares.push_back({resource, back});
    }
  }
  const uint32_t pair = shares_.add(shares);
  const auto begin = static_cast<uint32_t>(ways_.size());
  for (const MaxMin::Share& share : shares) {
    const auto same = std::find_if(ways_.begin() + begin, ways_.end(),
                                   [&](const Way& way) { return way.resource == share.resource; });
    if (same == ways_.end()) {
      ways_.push_back({share.resource, share.weight});
    } else {
      same->weight += share.weight;
    }
  }
  double alone = limit_of(platform_.protocol);
  for (auto way = ways_.begin() + begin; way != ways_.end(); ++way) {
    const double bandwidth = platform_.links[way->resource / 2].bandwidth;
    alone = std::min(alone, bandwidth * platform_.protocol.goodput / way->weight);
  }
  pairs_.push_back(
      {route.latency, route.overhead, alone, begin, static_cast<uint32_t>(ways_.size())});
  services_.add_flow();
  return pair;
}

void FlowNetwork::start(uint32_t message, uint32_t source, uint32_t target, uint64_t bytes,
                        Time delay, Time now) {
  const uint32_t pair = pair_of(source, target);
  uint32_t place = free_;
  if (place == kNil) {
    place = static_cast<uint32_t>(waiting_.size());
    waiting_.emplace_back();
  } else {
    free_ = waiting_[place].next;
  }
  waiting_[place] = {message, kNil, bytes, delay};
  Pair& p = pairs_[pair];
  if (p.first == kNil) {
    p.first = p.last = place;
    begin(pair, now);
  } else {
    waiting_[p.last].next = place;
    p.last = place;
  }
}

// The first of the waiting messages is under way.
void FlowNetwork::begin(uint32_t pair, Time now) {
  if (pairs_[pair].overhead > 0) {
    sink_.schedule(now + pairs_[pair].overhead, pair);
  } else {
    flow(pair, now);
  }
}

void FlowNetwork::flow(uint32_t pair, Time now) {
  Pair& p = pairs_[pair];
  const uint64_t bytes = waiting_[p.first].bytes;
  if (bytes == 0) return finish(pair, now);
  p.left = static_cast<double>(bytes);
  bool alone = nominal_;
  for (const Way& way : ways(p)) {
    if (users_[way.resource]++ == 0) continue;
    alone = false;
    if (owner_[way.resource] != kNil) join_others(owner_[way.resource], now);
  }
  if (!alone) {
    changed_ = true;
    return shares_.activate(pair);
  }
  for (const Way& way : ways(p)) owner_[way.resource] = pair;
  p.since = now;
  p.until = now + ticks(p.left, p.alone);
  sink_.schedule(p.until, kAlone | pair);
}

// The pair had its links to itself until now.
void FlowNetwork::close_alone(uint32_t pair, Time now) {
  Pair& p = pairs_[pair];
  const double carried = p.alone * to_seconds(now - p.since);
  for (const Way& way : ways(p)) {
    owner_[way.resource] = kNil;
    if (usage_ == nullptr || now == p.since) continue;
    usage_->add(way.resource, p.since, now, way.weight * carried / platform_.protocol.goodput);
  }
  p.left = std::max(p.left - carried, 0.0);
  p.until = kNever;
}

void FlowNetwork::join_others(uint32_t pair, Time now) {
  close_alone(pair, now);
  changed_ = true;
  shares_.activate(pair);
}

void FlowNetwork::finish(uint32_t pair, Time now) {
  // Delivered before the next begins: an empty one would be there at once, before this one. And not
  // by recursion: there may be any number of empty ones.
  for (;;) {
    const uint32_t place = pairs_[pair].first;
    const Waiting done = waiting_[place];
    sink_.delivered(done.message, now, now + pairs_[pair].latency + done.delay);
    // Read now: what delivered() starts queues behind.
    const uint32_t next = waiting_[place].next;
    pairs_[pair].first = next;
    waiting_[place].next = free_;
    free_ = place;
    if (next == kNil) return;
    if (pairs_[pair].overhead > 0 || waiting_[next].bytes > 0) break;
  }
  begin(pair, now);
}

void FlowNetwork::on_timer(uint64_t data, Time now) {
  if (data < kCompletion) return flow(static_cast<uint32_t>(data), now);
  if (data >= kAlone) {
    const auto pair = static_cast<uint32_t>(data);
    // It may share by now, or be another message's.
    if (pairs_[pair].until != now) return;
    close_alone(pair, now);
    for (const Way& way : ways(pairs_[pair])) --users_[way.resource];
    return finish(pair, now);
  }
  // Set for a time that has moved since: another timer stands.
  if (now != timer_) return;
  timer_ = kNever;
  due_.clear();
  ended_.clear();
  ends_.due(now, due_);
  for (const uint32_t group : due_) {
    services_.advance(group, now);
    services_.take(group, ended_);
    update(group);
  }
  std::sort(ended_.begin(), ended_.end());
  changed_ = true;
  for (const uint32_t pair : ended_) {
    shares_.deactivate(pair);
    for (const Way& way : ways(pairs_[pair])) --users_[way.resource];
  }
  for (const uint32_t pair : ended_) finish(pair, now);
}

void FlowNetwork::settle(Time now) {
  if (!changed_) return;
  changed_ = false;
  shares_.solve();
  const uint32_t unlimited = shares_.unlimited();
  for (const ResourceId resource : shares_.visited()) services_.advance(resource, now);
  services_.advance(unlimited, now);
  for (const auto [pair, before] : shares_.moved()) {
    const double left =
        before == MaxMin::kNobody ? pairs_[pair].left : services_.part(pair, before);
    services_.join(pair, shares_.group(pair), left);
  }
  for (const ResourceId resource : shares_.visited()) update(resource);
  update(unlimited);
  if (usage_ != nullptr) watch(now);
  const Time next = ends_.first();
  if (next != timer_ && next != kNever) sink_.schedule(std::min(next, kLongest), kCompletion);
  timer_ = next;
}

// The group's rate is another, or its flows are others.
void FlowNetwork::update(uint32_t group) {
  services_.set_rate(group, shares_.level(group));
  ends_.set(group, services_.next(group));
}

// Closes the books on links whose load has changed.
void FlowNetwork::watch(Time now) {
  for (const ResourceId resource : shares_.visited()) {
    const double load = shares_.load(resource);
    if (load == load_[resource]) continue;
    const Time since = load_since_[resource];
    if (load_[resource] > 0.0 && now > since) {
      const double payload = load_[resource] * to_seconds(now - since);
      usage_->add(resource, since, now, payload / platform_.protocol.goodput);
    }
    load_[resource] = load;
    load_since_[resource] = now;
  }
}

Time FlowNetwork::latency(uint32_t source, uint32_t target) {
  return routes_.find(source, target).latency;
}

Time FlowNetwork::ideal(uint32_t source, uint32_t target, uint64_t bytes) {
  const Pair& pair = pairs_[pair_of(source, target)];
  return pair.overhead + ticks(static_cast<double>(bytes), pair.alone) + pair.latency;
}

bool FlowNetwork::queued(uint32_t source, uint32_t target) const {
  const auto it = index_.find((uint64_t{source} << 32) | target);
  return it != index_.end() && pairs_[it->second].first != kNil;
}

void FlowNetwork::set_factor(uint32_t link, double factor, Time now) {
  nominal_ = false;
  changed_ = true;
  for (const ResourceId resource : {2 * link, 2 * link + 1}) {
    if (owner_[resource] != kNil) join_others(owner_[resource], now);
  }
  const double capacity = platform_.links[link].bandwidth * platform_.protocol.goodput * factor;
  shares_.set_capacity(2 * link, capacity);
  shares_.set_capacity(2 * link + 1, capacity);
}

}  // namespace leeboard::sim

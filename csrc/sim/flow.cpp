#include "flow.h"

#include <algorithm>
#include <limits>

namespace leeboard::sim {
namespace {

// The timer of the next completion; other timers carry a pair.
constexpr uint64_t kCompletion = (uint64_t{1} << 40) - 1;

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
  double alone = limit_of(platform_.protocol);
  for (const MaxMin::Share& share : shares) {
    double weight = 0.0;
    for (const MaxMin::Share& other : shares) {
      if (other.resource == share.resource) weight += other.weight;
    }
    const double nominal =
        platform_.links[share.resource / 2].bandwidth * platform_.protocol.goodput;
    alone = std::min(alone, nominal / weight);
  }
  pairs_.push_back({route.latency, route.overhead, alone});
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
  if (waiting_[pairs_[pair].first].bytes == 0) return finish(pair, now);
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
  if (data != kCompletion) return flow(static_cast<uint32_t>(data), now);
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
  for (const uint32_t pair : ended_) shares_.deactivate(pair);
  for (const uint32_t pair : ended_) finish(pair, now);
}

void FlowNetwork::settle(Time now) {
  shares_.solve();
  const uint32_t unlimited = shares_.unlimited();
  for (const ResourceId resource : shares_.visited()) services_.advance(resource, now);
  services_.advance(unlimited, now);
  for (const auto [pair, before] : shares_.moved()) {
    const double left = before == MaxMin::kNobody
                            ? static_cast<double>(waiting_[pairs_[pair].first].bytes)
                            : services_.part(pair, before);
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

void FlowNetwork::set_factor(uint32_t link, double factor, Time) {
  const double capacity = platform_.links[link].bandwidth * platform_.protocol.goodput * factor;
  shares_.set_capacity(2 * link, capacity);
  shares_.set_capacity(2 * link + 1, capacity);
}

}  // namespace leeboard::sim

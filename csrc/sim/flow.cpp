#include "flow.h"

#include <algorithm>
#include <cmath>
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
      shares_(capacities_of(platform), limit_of(platform.protocol)) {
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
  pairs_.push_back({route.latency, route.overhead, alone, {}});
  ends_.push_back(kNever);
  if (ends_.size() > block_ends_.size() * kBlock) {
    block_ends_.push_back(kNever);
    block_stale_.push_back(false);
  }
  return pair;
}

void FlowNetwork::start(uint32_t message, uint32_t source, uint32_t target, uint64_t bytes,
                        Time delay, Time now) {
  const uint32_t pair = pair_of(source, target);
  pairs_[pair].waiting.push_back({message, bytes, delay});
  if (pairs_[pair].waiting.size() == 1) begin(pair, now);
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
  if (p.waiting.front().bytes == 0) return finish(pair, now);
  p.left = static_cast<double>(p.waiting.front().bytes);
  p.since = now;
  shares_.activate(pair);
}

void FlowNetwork::finish(uint32_t pair, Time now) {
  // Delivered before the next begins: an empty one would be there at once, before this one. And not
  // by recursion: there may be any number of empty ones.
  do {
    const Waiting done = pairs_[pair].waiting.front();
    sink_.delivered(done.message, now, now + pairs_[pair].latency + done.delay);
    pairs_[pair].waiting.pop_front();
    if (pairs_[pair].waiting.empty()) return;
  } while (pairs_[pair].overhead == 0 && pairs_[pair].waiting.front().bytes == 0);
  begin(pair, now);
}

void FlowNetwork::on_timer(uint64_t data, Time now) {
  if (data != kCompletion) return flow(static_cast<uint32_t>(data), now);
  // Set for a time that has moved since: another timer stands.
  if (now != timer_) return;
  timer_ = kNever;
  ended_.clear();
  for (uint32_t block = 0; block < block_ends_.size(); ++block) {
    if (block_ends_[block] > now) continue;
    const uint32_t end = std::min((block + 1) * kBlock, static_cast<uint32_t>(ends_.size()));
    for (uint32_t pair = block * kBlock; pair < end; ++pair) {
      if (ends_[pair] <= now) ended_.push_back(pair);
    }
  }
  for (const uint32_t pair : ended_) {
    shares_.deactivate(pair);
    set_end(pair, kNever);
  }
  for (const uint32_t pair : ended_) finish(pair, now);
}

void FlowNetwork::settle(Time now) {
  shares_.solve();
  for (const auto [pair, before] : shares_.changed()) {
    Pair& p = pairs_[pair];
    p.left -= before * to_seconds(now - p.since);
    p.since = now;
    const double rate = shares_.rate(pair);
    if (rate <= 0.0) {
      set_end(pair, kNever);
      continue;
    }
    const double ps = std::ceil(std::max(p.left, 0.0) / rate * static_cast<double>(kSecond));
    // Later than any run: it may speed up before.
    set_end(pair, ps < static_cast<double>(kLongest) ? now + static_cast<Time>(ps) : kLongest);
  }
  if (usage_ != nullptr) watch(now);
  const Time next = first_end();
  if (next != timer_ && next != kNever) sink_.schedule(std::min(next, kLongest), kCompletion);
  timer_ = next;
}

void FlowNetwork::set_end(uint32_t pair, Time end) {
  ends_[pair] = end;
  const uint32_t block = pair / kBlock;
  if (block_stale_[block]) return;
  block_stale_[block] = true;
  stale_.push_back(block);
}

Time FlowNetwork::first_end() {
  for (const uint32_t block : stale_) {
    const auto begin = ends_.begin() + block * kBlock;
    const auto end = ends_.begin() + std::min<size_t>((block + 1) * kBlock, ends_.size());
    Time first = kNever;
    for (auto it = begin; it != end; ++it) first = std::min(first, *it);
    block_ends_[block] = first;
    block_stale_[block] = false;
  }
  stale_.clear();
  Time first = kNever;
  for (const Time end : block_ends_) first = std::min(first, end);
  return first;
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
  const double seconds = static_cast<double>(bytes) / pair.alone;
  const auto ps = static_cast<Time>(std::ceil(seconds * static_cast<double>(kSecond)));
  return pair.overhead + ps + pair.latency;
}

void FlowNetwork::set_factor(uint32_t link, double factor, Time) {
  const double capacity = platform_.links[link].bandwidth * platform_.protocol.goodput * factor;
  shares_.set_capacity(2 * link, capacity);
  shares_.set_capacity(2 * link + 1, capacity);
}

}  // namespace leeboard::sim

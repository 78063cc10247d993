#include "alpha_beta.h"

#include <algorithm>

namespace leeboard::sim {

AlphaBeta::AlphaBeta(const Platform& platform, Routes& routes, NetworkSink& sink, Usage* usage)
    : platform_(platform),
      routes_(routes),
      sink_(sink),
      usage_(usage),
      free_(2 * platform.links.size(), 0),
      factor_(platform.links.size(), 1.0),
      queued_(2 * platform.links.size(), 0) {}

double AlphaBeta::bandwidth(const Route& route) const {
  double least = route.bandwidth;
  if (!nominal_) {
    for (const ResourceId resource : route.resources) {
      least = std::min(least, platform_.links[resource / 2].bandwidth * factor_[resource / 2]);
    }
  }
  least *= platform_.protocol.goodput;
  const double limit = platform_.protocol.rate_limit;
  return limit > 0.0 ? std::min(least, limit) : least;
}

void AlphaBeta::start(uint32_t message, uint32_t source, uint32_t target, uint64_t bytes,
                      Time delay, Time now) {
  const Route& route = routes_.find(source, target);
  const double rate = bandwidth(route);
  if (rate <= 0.0) {
    waiting_.push_back({message, source, target, bytes, delay});
    return;
  }
  const Time length = route.overhead + duration(static_cast<double>(bytes), rate);
  const ResourceId first = route.resources.front();
  Time& free = free_[first];
  const Time begin = std::max(now, free);
  free = begin + length;
  const Leaving leaving{message, &route, begin, length, delay, bytes};
  // One that takes no time may still be about to leave, now.
  if (begin == now && queued_[first] == 0) return leave(leaving);
  ++queued_[first];
  // Messages come to the last link in the order in which they leave, not in that of the calls.
  uint32_t place = free_place_;
  if (place == kNil) {
    place = static_cast<uint32_t>(leaving_.size());
    leaving_.push_back(leaving);
  } else {
    free_place_ = leaving_[place].message;
    leaving_[place] = leaving;
  }
  sink_.schedule(begin, place);
}

void AlphaBeta::on_timer(uint64_t data, Time) {
  const auto place = static_cast<uint32_t>(data);
  const Leaving leaving = leaving_[place];
  leaving_[place].message = free_place_;
  free_place_ = place;
  --queued_[leaving.route->resources.front()];
  leave(leaving);
}

void AlphaBeta::leave(const Leaving& leaving) {
  const Route& route = *leaving.route;
  const ResourceId first = route.resources.front(), last = route.resources.back();
  const Time departed = leaving.begin + leaving.length;
  Time arrived = departed + route.latency;
  if (last != first) {
    arrived = std::max(leaving.begin + route.latency, free_[last]) + leaving.length;
    free_[last] = arrived;
  }
  if (usage_ != nullptr) {
    const double carried = static_cast<double>(leaving.bytes) / platform_.protocol.goodput;
    for (const ResourceId resource : route.resources) {
      usage_->add(resource, leaving.begin, departed, carried);
    }
  }
  sink_.delivered(leaving.message, departed, arrived + leaving.delay);
}

Time AlphaBeta::latency(uint32_t source, uint32_t target) {
  return routes_.find(source, target).latency;
}

Time AlphaBeta::length(uint32_t source, uint32_t target, uint64_t bytes) {
  const Route& route = routes_.find(source, target);
  double rate = route.bandwidth * platform_.protocol.goodput;
  const double limit = platform_.protocol.rate_limit;
  if (limit > 0.0) rate = std::min(rate, limit);
  return route.overhead + duration(static_cast<double>(bytes), rate);
}

Time AlphaBeta::ideal(uint32_t source, uint32_t target, uint64_t bytes) {
  return latency(source, target) + length(source, target, bytes);
}

void AlphaBeta::set_factor(uint32_t link, double factor, Time now) {
  factor_[link] = factor;
  nominal_ = std::all_of(factor_.begin(), factor_.end(), [](double f) { return f == 1.0; });
  std::vector<Waiting> waiting;
  waiting.swap(waiting_);
  for (const Waiting& w : waiting) {
    start(w.message, w.source, w.target, w.bytes, w.delay, now);
  }
}

}  // namespace leeboard::sim

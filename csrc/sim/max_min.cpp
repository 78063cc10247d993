#include "max_min.h"

#include <algorithm>
#include <limits>

namespace leeboard::sim {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// Levels that rounding alone keeps apart count as one.
constexpr double kBelow = 1.0 - 1e-9;

}  // namespace

MaxMin::MaxMin(std::vector<double> capacities, double limit)
    : limit_(limit), resources_(capacities.size()), level_(kInfinity) {
  for (size_t r = 0; r < capacities.size(); ++r) resources_[r].capacity = capacities[r];
}

uint32_t MaxMin::add(std::span<const Share> shares) {
  Flow flow;
  flow.begin = static_cast<uint32_t>(places_.size());
  for (const Share& share : shares) {
    const auto same = std::find_if(places_.begin() + flow.begin, places_.end(),
                                   [&](const Place& p) { return p.resource == share.resource; });
    if (same == places_.end()) {
      places_.push_back({share.resource, 0, share.weight});
    } else {
      same->weight += share.weight;
    }
  }
  flow.end = static_cast<uint32_t>(places_.size());
  flows_.push_back(flow);
  rates_.push_back(0.0);
  visits_.push_back(0);
  rises_.push_back(0);
  return static_cast<uint32_t>(flows_.size() - 1);
}

void MaxMin::touch(ResourceId resource, double level) {
  level_ = std::min(level_, level);
  Resource& r = resources_[resource];
  if (r.touched) return;
  r.touched = true;
  touched_.push_back(resource);
}

void MaxMin::activate(uint32_t flow) {
  Flow& f = flows_[flow];
  f.active = true;
  rates_[flow] = kUnset;
  for (uint32_t share = f.begin; share < f.end; ++share) {
    Place& place = places_[share];
    Resource& r = resources_[place.resource];
    place.member = static_cast<uint32_t>(r.members.size());
    r.members.push_back({flow, share, place.weight});
    r.total += place.weight;
    // No resource is full before all its flows have an equal part.
    touch(place.resource, r.capacity / r.total);
  }
}

void MaxMin::deactivate(uint32_t flow) {
  Flow& f = flows_[flow];
  const double level = std::max(rates_[flow], 0.0);
  for (uint32_t share = f.begin; share < f.end; ++share) {
    const Place& place = places_[share];
    Resource& r = resources_[place.resource];
    r.members[place.member] = r.members.back();
    places_[r.members[place.member].place].member = place.member;
    r.members.pop_back();
    r.total = r.members.empty() ? 0.0 : r.total - place.weight;
    touch(place.resource, level);
  }
  f.active = false;
  rates_[flow] = 0.0;
}

void MaxMin::set_capacity(ResourceId resource, double capacity) {
  Resource& r = resources_[resource];
  const double total = std::max(r.total, std::numeric_limits<double>::min());
  touch(resource, std::min(r.capacity, capacity) / total);
  r.capacity = capacity;
}

double MaxMin::load(ResourceId resource) const {
  double load = 0.0;
  for (const Member& member : resources_[resource].members) {
    load += member.weight * std::max(rates_[member.flow], 0.0);
  }
  return load;
}

void MaxMin::visit(ResourceId resource) {
  Resource& r = resources_[resource];
  if (r.visit == round_) return;
  r.visit = round_;
  visited_.push_back(resource);
}

void MaxMin::settle(uint32_t flow, double rate) {
  rises_[flow] = 0;
  const double before = rates_[flow];
  if (rate != before) {
    changed_.push_back({flow, std::max(before, 0.0)});
    rates_[flow] = rate;
  }
  const Flow& f = flows_[flow];
  for (uint32_t i = f.begin; i < f.end; ++i) {
    const Place& place = places_[i];
    Resource& r = resources_[place.resource];
    r.left -= place.weight * rate;
    r.weight -= place.weight;
    --r.rising;
  }
}

void MaxMin::solve() {
  changed_.clear();
  visited_.clear();
  if (touched_.empty()) return;
  ++round_;
  const double level = level_ * kBelow;
  level_ = kInfinity;
  for (const ResourceId resource : touched_) {
    resources_[resource].touched = false;
    visit(resource);
  }
  touched_.clear();

  // All that the change may reach: flows at or above its level, by way of their resources.
  rising_.clear();
  for (size_t i = 0; i < visited_.size(); ++i) {
    Resource& r = resources_[visited_[i]];
    double left = r.capacity, weight = 0.0;
    uint32_t rising = 0;
    const bool everywhere = visited_.size() == resources_.size();
    for (const Member& member : r.members) {
      const double rate = rates_[member.flow];
      if (rate < level && rate != kUnset) {
        left -= member.weight * rate;
        continue;
      }
      weight += member.weight;
      ++rising;
      if (visits_[member.flow] == round_) continue;
      visits_[member.flow] = round_;
      rises_[member.flow] = 1;
      rising_.push_back(member.flow);
      if (everywhere) continue;
      const Flow& f = flows_[member.flow];
      for (uint32_t p = f.begin; p < f.end; ++p) visit(places_[p].resource);
    }
    r.left = left;
    r.weight = weight;
    r.rising = rising;
  }

  heap_.clear();
  for (const ResourceId resource : visited_) {
    const Resource& r = resources_[resource];
    if (r.rising > 0) heap_.push_back({std::max(r.left, 0.0) / r.weight, resource});
  }
  std::make_heap(heap_.begin(), heap_.end());
  while (!heap_.empty()) {
    const Full next = heap_.front();
    std::pop_heap(heap_.begin(), heap_.end());
    heap_.pop_back();
    Resource& r = resources_[next.resource];
    if (r.rising == 0) continue;
    // Flows that stopped elsewhere left it more than it seemed.
    const double full = std::max(r.left, 0.0) / r.weight;
    if (full > next.level && !heap_.empty() && full > heap_.front().level) {
      heap_.push_back({full, next.resource});
      std::push_heap(heap_.begin(), heap_.end());
      continue;
    }
    if (full >= limit_) {
      // This and all that would come after.
      for (const uint32_t flow : rising_) {
        if (rises_[flow]) settle(flow, limit_);
      }
      break;
    }
    for (const Member& member : r.members) {
      if (rises_[member.flow]) settle(member.flow, full);
    }
  }
}

}  // namespace leeboard::sim

#include "max_min.h"

#include <algorithm>

namespace leeboard::sim {

MaxMin::MaxMin(const std::vector<double>& capacities, double limit)
    : limit_(limit), resources_(capacities.size() + 1), edges_(capacities.size() + 1) {
  for (size_t r = 0; r < capacities.size(); ++r) {
    resources_[r].capacity = capacities[r];
    resources_[r].most = capacities[r] * (1.0 + kTie);
  }
  edges_.back().level = limit;
}

uint32_t MaxMin::add(std::span<const Share> shares) {
  const auto begin = static_cast<uint32_t>(places_.size());
  for (const Share& share : shares) {
    const auto same = std::find_if(places_.begin() + begin, places_.end(),
                                   [&](const Place& p) { return p.resource == share.resource; });
    if (same == places_.end()) {
      places_.push_back({share.resource, 0, share.weight});
    } else {
      same->weight += share.weight;
    }
  }
  flows_.push_back({begin, static_cast<uint32_t>(places_.size())});
  return static_cast<uint32_t>(flows_.size() - 1);
}

// The first change after a solution.
void MaxMin::begin() {
  for (const ResourceId old : visited_) {
    edges_[old].visited = false;
    edges_[old].alarm = -kInfinity;
  }
  visited_.clear();
  solved_ = false;
}

void MaxMin::arm(ResourceId resource) {
  Edge& edge = edges_[resource];
  if (edge.dirty) {
    edge.alarm = kInfinity;
  } else {
    edge.alarm = edge.level < kInfinity || !edge.visited ? -kInfinity : resources_[resource].most;
  }
}

void MaxMin::visit(ResourceId resource) {
  if (solved_) begin();
  if (edges_[resource].visited) return;
  edges_[resource].visited = true;
  visited_.push_back(resource);
  arm(resource);
}

// Its level or its load may be wrong.
void MaxMin::mark(ResourceId resource) {
  Edge& edge = edges_[resource];
  if (edge.dirty) return;
  visit(resource);
  edge.dirty = true;
  edge.alarm = kInfinity;
  const Resource& r = resources_[resource];
  const double least = r.total > 0.0 ? r.capacity / r.total : 0.0;
  heap_.push_back({edge.level < kInfinity ? edge.level : least, resource});
  std::push_heap(heap_.begin(), heap_.end());
}

// Its load has changed, beyond its alarm. That is nothing to one that is not full.
void MaxMin::touch(ResourceId resource) {
  const Edge& edge = edges_[resource];
  if (edge.level < kInfinity || edge.elsewhere > resources_[resource].most) {
    mark(resource);
  } else {
    visit(resource);
  }
}

void MaxMin::swap_members(Resource& resource, uint32_t a, uint32_t b) {
  std::swap(resource.members[a], resource.members[b]);
  places_[resource.members[a].share].member = a;
  places_[resource.members[b].share].member = b;
}

void MaxMin::activate(uint32_t flow) {
  Flow& f = flows_[flow];
  f.active = true;
  ++active_;
  fresh_.push_back(flow);
  for (uint32_t share = f.begin; share < f.end; ++share) {
    Place& place = places_[share];
    Resource& r = resources_[place.resource];
    place.member = static_cast<uint32_t>(r.members.size());
    r.members.push_back({flow, kNobody, f.begin, f.end, share});
    r.total += place.weight;
    visit(place.resource);
  }
}

void MaxMin::deactivate(uint32_t flow) {
  Flow& f = flows_[flow];
  if (f.group != kNobody) leave(flow);
  for (uint32_t share = f.begin; share < f.end; ++share) {
    const Place& place = places_[share];
    Resource& r = resources_[place.resource];
    swap_members(r, place.member, static_cast<uint32_t>(r.members.size() - 1));
    r.members.pop_back();
    r.total = r.members.empty() ? 0.0 : r.total - place.weight;
    mark(place.resource);
  }
  f.active = false;
  --active_;
}

void MaxMin::set_capacity(ResourceId resource, double capacity) {
  resources_[resource].capacity = capacity;
  resources_[resource].most = capacity * (1.0 + kTie);
  mark(resource);
}

double MaxMin::load(ResourceId resource) const {
  const Resource& r = resources_[resource];
  if (r.members.empty()) return 0.0;
  const Edge& edge = edges_[resource];
  return r.grouped > 0 ? edge.elsewhere + r.weight * edge.level : edge.elsewhere;
}

// A flow without a group joins one whose level is known.
void MaxMin::enter(uint32_t flow, uint32_t group) {
  Flow& f = flows_[flow];
  f.group = group;
  const double level = edges_[group].level;
  for (uint32_t share = f.begin; share < f.end; ++share) {
    const Place& place = places_[share];
    Resource& r = resources_[place.resource];
    r.members[place.member].group = group;
    if (place.resource != group) {
      edges_[place.resource].elsewhere += place.weight * level;
      continue;
    }
    r.weight += place.weight;
    swap_members(r, place.member, r.grouped++);
  }
}

void MaxMin::leave(uint32_t flow) {
  Flow& f = flows_[flow];
  const double level = edges_[f.group].level;
  for (uint32_t share = f.begin; share < f.end; ++share) {
    const Place& place = places_[share];
    Resource& r = resources_[place.resource];
    r.members[place.member].group = kNobody;
    if (place.resource != f.group) {
      edges_[place.resource].elsewhere -= place.weight * level;
      continue;
    }
    swap_members(r, place.member, --r.grouped);
    r.weight -= place.weight;
    if (r.grouped > 0) continue;
    r.weight = 0.0;
    edges_[place.resource].level = kInfinity;
  }
  f.group = kNobody;
}

}  // namespace leeboard::sim

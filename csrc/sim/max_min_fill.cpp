// From nothing: what many changes at once come to, and what does not settle.
#include <algorithm>

#include "max_min.h"

namespace leeboard::sim {

// All that resources and flows join to what was visited, without groups.
void MaxMin::gather() {
  filling_.clear();
  for (size_t i = 0; i < visited_.size(); ++i) {
    Resource& r = resources_[visited_[i]];
    Edge& edge = edges_[visited_[i]];
    edge.level = kInfinity;
    edge.elsewhere = r.weight = r.total = 0.0;
    r.grouped = 0;
    r.age = 0;
    edge.dirty = r.opened = false;
    for (Member& member : r.members) {
      member.group = kNobody;
      r.total += places_[member.share].weight;
      Flow& f = flows_[member.flow];
      if (f.filled) continue;
      f.filled = true;
      filling_.push_back(member.flow);
      note(member.flow);
      f.group = kNobody;
      for (uint32_t share = f.begin; share < f.end; ++share) visit(places_[share].resource);
    }
    r.rising = r.total;
    r.risers = static_cast<uint32_t>(r.members.size());
  }
}

// Progressive filling of all that the changes may reach.
void MaxMin::fill() {
  gather();
  heap_.clear();
  const auto full = [this](ResourceId resource) {
    const Resource& r = resources_[resource];
    const double least = r.capacity / r.total;
    if (r.rising <= 0.0 || r.capacity <= 0.0) return least;
    return std::max((r.capacity - edges_[resource].elsewhere) / r.rising, least);
  };
  for (const ResourceId resource : visited_) {
    if (resources_[resource].risers > 0) heap_.push_back({full(resource), resource});
  }
  std::make_heap(heap_.begin(), heap_.end());
  const auto stop = [this](uint32_t flow, uint32_t group) {
    const Flow& f = flows_[flow];
    for (uint32_t share = f.begin; share < f.end; ++share) {
      Resource& r = resources_[places_[share].resource];
      r.rising -= places_[share].weight;
      --r.risers;
    }
    enter(flow, group);
  };
  while (!heap_.empty()) {
    const Entry next = heap_.front();
    std::pop_heap(heap_.begin(), heap_.end());
    heap_.pop_back();
    Resource& r = resources_[next.resource];
    if (r.risers == 0) continue;
    // Flows that stopped elsewhere left it more than it seemed.
    const double level = full(next.resource);
    if (level > next.level && !heap_.empty() && level > heap_.front().level) {
      heap_.push_back({level, next.resource});
      std::push_heap(heap_.begin(), heap_.end());
      continue;
    }
    if (level >= limit_) break;
    edges_[next.resource].level = level;
    for (uint32_t i = 0; i < r.members.size(); ++i) {
      if (r.members[i].group == kNobody) stop(r.members[i].flow, next.resource);
    }
  }
  heap_.clear();
  for (const uint32_t flow : filling_) {
    Flow& f = flows_[flow];
    f.filled = false;
    if (f.group == kNobody) enter(flow, unlimited());
  }
  for (const ResourceId resource : visited_) arm(resource);
}

}  // namespace leeboard::sim

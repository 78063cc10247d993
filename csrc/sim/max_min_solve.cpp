// What a change comes to, followed from resource to resource.
#include <algorithm>
#include <cmath>

#include "max_min.h"

namespace leeboard::sim {
namespace {

constexpr double kSame = 1e-13;
// A resource's sums are made anew every so many times that it is visited, before rounding adds up.
constexpr uint16_t kFresh = 256;
// From so many new flows on, one in kShare of all, all levels are found from nothing.
constexpr uint32_t kMany = 16, kShare = 4;

}  // namespace

void MaxMin::note(uint32_t flow) {
  Flow& f = flows_[flow];
  if (f.noted) return;
  f.noted = true;
  moved_.push_back({flow, f.group});
}

void MaxMin::move(uint32_t flow, uint32_t to, ResourceId except) {
  note(flow);
  leave(flow);
  enter(flow, to);
  const Flow& f = flows_[flow];
  for (uint32_t share = f.begin; share < f.end; ++share) {
    const ResourceId resource = places_[share].resource;
    if (resource != except && !edges_[resource].dirty) touch(resource);
  }
}

// A new flow starts where it is held back most, or will be.
void MaxMin::place(uint32_t flow) {
  const Flow& f = flows_[flow];
  uint32_t best = unlimited();
  double least = limit_;
  for (uint32_t share = f.begin; share < f.end; ++share) {
    const Resource& r = resources_[places_[share].resource];
    const double known = edges_[places_[share].resource].level;
    const double level = known < kInfinity ? known : r.capacity / r.total;
    if (level < least) {
      least = level;
      best = places_[share].resource;
    }
  }
  note(flow);
  if (edges_[best].level == kInfinity) {
    edges_[best].level = least;
    resources_[best].opened = true;
  }
  enter(flow, best);
  for (uint32_t share = f.begin; share < f.end; ++share) mark(places_[share].resource);
}

void MaxMin::refresh(ResourceId resource) {
  Resource& r = resources_[resource];
  Edge& edge = edges_[resource];
  r.age = 0;
  edge.elsewhere = r.weight = r.total = 0.0;
  for (uint32_t i = 0; i < r.members.size(); ++i) {
    const Member& member = r.members[i];
    const double weight = places_[member.share].weight;
    r.total += weight;
    if (i < r.grouped) {
      r.weight += weight;
    } else {
      edge.elsewhere += weight * edges_[member.group].level;
    }
  }
}

// Flows that other resources let go faster than `level` join this one's group.
void MaxMin::pull(ResourceId resource, double level) {
  const Resource& r = resources_[resource];
  const double bound = level * (1.0 + kTie);
  leaving_.clear();
  const Edge* const edges = edges_.data();
  const Member* const end = r.members.data() + r.members.size();
  for (const Member* member = r.members.data() + r.grouped; member != end; ++member) {
    if (edges[member->group].level > bound) leaving_.push_back(member->flow);
  }
  for (const uint32_t flow : leaving_) move(flow, resource, resource);
}

// A new level; whether flows left the group because they are held back more elsewhere.
bool MaxMin::shift(ResourceId resource, double level) {
  const Resource& r = resources_[resource];
  const double by = level - edges_[resource].level, bound = level * (1.0 - kTie);
  edges_[resource].level = level;
  leaving_.clear();
  const Place* const places = places_.data();
  Edge* const edges = edges_.data();
  const bool limited = limit_ < bound;
  // The resource itself is on all ways: cheaper to put it right than to leave it out, mostly.
  const double elsewhere = edges[resource].elsewhere;
  const Member* const end = r.members.data() + r.grouped;
  const auto felt = [&](const Place& place) {
    Edge& other = edges[place.resource];
    other.elsewhere += place.weight * by;
    if (other.elsewhere > other.alarm) touch(place.resource);
    return other.level < bound;
  };
  for (const Member* member = r.members.data(); member != end; ++member) {
    bool leaves = limited;
    if (member->end - member->begin == 2) {
      leaves |= felt(places[2 * member->begin + 1 - member->share]);
    } else {
      const Place* const last = places + member->end;
      for (const Place* place = places + member->begin; place != last; ++place) {
        leaves |= felt(*place);
      }
    }
    if (leaves) leaving_.push_back(member->flow);
  }
  edges[resource].elsewhere = elsewhere;
  for (const uint32_t flow : leaving_) {
    const Flow& f = flows_[flow];
    uint32_t best = unlimited();
    for (uint32_t share = f.begin; share < f.end; ++share) {
      const ResourceId other = places_[share].resource;
      if (edges_[other].level < edges_[best].level) best = other;
    }
    if (best != resource) move(flow, best, resource);
  }
  return !leaving_.empty();
}

// Makes the level of a resource, which is on the list meanwhile, fit those of the others.
void MaxMin::relax(ResourceId resource) {
  Resource& r = resources_[resource];
  Edge& edge = edges_[resource];
  if (++r.age >= kFresh) refresh(resource);
  const auto full = [&r, &edge] {
    // Not what rounding leaves: its flows stand still.
    if (r.capacity <= 0.0) return 0.0;
    // No resource is full before all its flows have an equal part.
    return std::max((r.capacity - edge.elsewhere) / r.weight, r.capacity / r.total);
  };
  for (;;) {
    if (r.grouped == 0) {
      edge.level = kInfinity;
      if (r.members.empty()) edge.elsewhere = r.total = 0.0;
      if (edge.elsewhere <= r.most) return;
      edge.level = r.capacity / r.total;
      r.opened = true;
      pull(resource, edge.level);
      if (r.grouped == 0) {
        edge.level = kInfinity;
        return;
      }
    }
    double level = full();
    if (r.opened || level < edge.level) {
      r.opened = false;
      pull(resource, level);
      level = full();
    }
    if (std::abs(level - edge.level) <= kSame * level) return;
    if (!shift(resource, level)) return;
  }
}

void MaxMin::solve() {
  if (solved_) begin();
  moved_.clear();
  std::erase_if(fresh_, [this](uint32_t flow) {
    return !flows_[flow].active || flows_[flow].group != kNobody;
  });
  if (fresh_.size() >= kMany && fresh_.size() * kShare >= active_) {
    fill();
  } else {
    for (const uint32_t flow : fresh_) {
      if (flows_[flow].group == kNobody) place(flow);
    }
  }
  fresh_.clear();
  for (size_t steps = 0; !heap_.empty(); ++steps) {
    // Lowest first, resources are rarely visited twice; what would go on is solved outright.
    if (steps > 16 * (visited_.size() + 4)) {
      fill();
      break;
    }
    const ResourceId resource = heap_.front().resource;
    std::pop_heap(heap_.begin(), heap_.end());
    heap_.pop_back();
    relax(resource);
    edges_[resource].dirty = false;
    arm(resource);
  }
  solved_ = true;
  std::erase_if(moved_, [this](const Move& move) {
    flows_[move.flow].noted = false;
    return flows_[move.flow].group == move.before;
  });
}

}  // namespace leeboard::sim

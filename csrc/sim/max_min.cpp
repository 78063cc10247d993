#include "max_min.h"

#include <algorithm>
#include <cmath>

namespace leeboard::sim {
namespace {

// Levels that rounding alone keeps apart count as one.
constexpr double kTie = 1e-12;
constexpr double kSame = 1e-13;
// A resource's sums are made anew every so many times that it is visited, before rounding adds up.
constexpr uint16_t kFresh = 256;
// From so many new flows on, one in kShare of all, all levels are found from nothing.
constexpr uint32_t kMany = 16, kShare = 4;

}  // namespace

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

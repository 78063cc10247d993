// Weighted max-min fair sharing: rates rise together until a resource of theirs is full, then those
// of its flows stop rising and the others go on (progressive filling; Bertsekas and Gallager, Data
// Networks, section 6.5.2).
//
// A flow is in the group of its bottleneck: a full resource, none of whose flows is faster. All
// flows of a group have one rate, the level of the resource. That every flow's bottleneck has the
// least level on its way, and that levels fill their resources, characterises the solution
// (section 6.5.2 too), so a change is followed from resource to resource, lowest level first, until
// this holds again; hardly any flow changes its group meanwhile.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "network.h"

namespace leeboard::sim {

class MaxMin {
 public:
  struct Share {
    ResourceId resource;
    double weight;  // of the flow's rate that the resource carries, above 0
  };
  static constexpr uint32_t kNobody = UINT32_MAX;

  // `limit`: no flow goes faster; infinity: none.
  MaxMin(const std::vector<double>& capacities, double limit);

  // A flow that is not active; its number. A resource may appear more than once; one at least.
  uint32_t add(std::span<const Share> shares);
  void activate(uint32_t flow);
  void deactivate(uint32_t flow);
  // 0: nothing gets through.
  void set_capacity(ResourceId resource, double capacity);

  // Brings levels and bottlenecks up to date.
  void solve();
  // The group of an active flow: its bottleneck, or unlimited() if its own limit is.
  uint32_t group(uint32_t flow) const { return flows_[flow].group; }
  uint32_t unlimited() const { return static_cast<uint32_t>(resources_.size()) - 1; }
  // The rate of a group's flows.
  double level(uint32_t group) const { return edges_[group].level; }
  double rate(uint32_t flow) const {
    return flows_[flow].group == kNobody ? 0.0 : level(flows_[flow].group);
  }
  double capacity(ResourceId resource) const { return resources_[resource].capacity; }
  // What all its flows take of it.
  double load(ResourceId resource) const;

  // Flows that the last solve() moved, and the group that each was in before (kNobody: it was not
  // active); resources whose level or load may have changed.
  struct Move {
    uint32_t flow, before;
  };
  std::span<const Move> moved() const { return moved_; }
  std::span<const ResourceId> visited() const { return visited_; }

 private:
  static constexpr double kInfinity = std::numeric_limits<double>::infinity();
  // Levels that rounding alone keeps apart count as one.
  static constexpr double kTie = 1e-12;

  struct Member {
    uint32_t flow;
    uint32_t group;       // the flow's
    uint32_t begin, end;  // its shares
    uint32_t share;       // which of them this is
  };
  // Of a resource: what changes of others touch.
  struct Edge {
    double level = kInfinity;  // of its group; infinity if that is empty
    double elsewhere = 0.0;    // what flows of other groups take
    // What they take beyond this has to be looked at: nothing of it while the resource is on the
    // list anyway; if it is known to be visited and not full, what is more than its capacity.
    double alarm = -kInfinity;
    bool dirty = false, visited = false;
  };
  struct Resource {
    double weight = 0.0;  // of its group
    double total = 0.0;   // weight of all its flows
    double capacity = 0.0;
    double most = 0.0;     // that it carries, but for rounding
    double rising = 0.0;   // while filling: weight of the flows that have no group yet,
    uint32_t risers = 0;   // and their number
    uint32_t grouped = 0;  // the first members are its group
    uint16_t age = 0;      // since the sums were made anew
    bool opened = false;   // its group is new
    std::vector<Member> members;
  };
  struct Place {
    ResourceId resource;
    uint32_t member;
    double weight;
  };
  struct Flow {
    uint32_t begin, end;  // shares
    uint32_t group = kNobody;
    bool active = false;
    bool noted = false, filled = false;  // while solving
  };
  // Of the heap of resources: least level first.
  struct Entry {
    double level;
    ResourceId resource;
    bool operator<(const Entry& other) const {
      return level != other.level ? level > other.level : resource > other.resource;
    }
  };

  void begin();
  void arm(ResourceId resource);
  void visit(ResourceId resource);
  void mark(ResourceId resource);
  void touch(ResourceId resource);
  void swap_members(Resource& resource, uint32_t a, uint32_t b);
  void enter(uint32_t flow, uint32_t group);
  void leave(uint32_t flow);
  void note(uint32_t flow);
  void move(uint32_t flow, uint32_t to, ResourceId except);
  void place(uint32_t flow);
  void refresh(ResourceId resource);
  void relax(ResourceId resource);
  void pull(ResourceId resource, double level);
  bool shift(ResourceId resource, double level);
  void gather();
  void fill();

  double limit_;
  // One more than there are: the last is the limit's, which is never full.
  std::vector<Resource> resources_;
  std::vector<Edge> edges_;
  std::vector<Flow> flows_;
  std::vector<Place> places_;
  uint32_t active_ = 0;
  bool solved_ = true;
  std::vector<uint32_t> fresh_;  // activated since the last solve
  std::vector<ResourceId> visited_;
  std::vector<Move> moved_;  // while solving: all flows that moved, maybe back
  std::vector<uint32_t> leaving_, filling_;
  std::vector<Entry> heap_;
};

}  // namespace leeboard::sim

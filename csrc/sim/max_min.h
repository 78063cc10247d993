// Weighted max-min fair sharing: rates rise together until a resource of theirs is full, then those
// of its flows stop rising and the others go on (progressive filling; Bertsekas and Gallager, Data
// Networks, section 6.5.2).
//
// A change moves nothing that fills up earlier than the change can be felt: flows below that level
// keep their rates, and so do flows that no chain of shared resources joins to the change.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "network.h"

namespace leeboard::sim {

class MaxMin {
 public:
  struct Share {
    ResourceId resource;
    double weight;  // of the flow's rate that the resource carries, above 0
  };

  // `limit`: no flow goes faster; infinity: none.
  MaxMin(std::vector<double> capacities, double limit);

  // A flow that is not active; its number. A resource may appear more than once.
  uint32_t add(std::span<const Share> shares);
  void activate(uint32_t flow);
  void deactivate(uint32_t flow);
  // 0: nothing gets through.
  void set_capacity(ResourceId resource, double capacity);

  // Brings the rates up to date.
  void solve();
  bool solved() const { return touched_.empty(); }
  double rate(uint32_t flow) const { return rates_[flow]; }
  bool active(uint32_t flow) const { return flows_[flow].active; }
  // Flows whose rate the last solve() changed, and their rates before; resources whose load it may
  // have changed.
  struct Changed {
    uint32_t flow;
    double before;
  };
  std::span<const Changed> changed() const { return changed_; }
  std::span<const ResourceId> visited() const { return visited_; }
  double capacity(ResourceId resource) const { return resources_[resource].capacity; }
  // What all its flows take of it.
  double load(ResourceId resource) const;

 private:
  static constexpr double kUnset = -1.0;

  struct Member {
    uint32_t flow;
    uint32_t place;
    double weight;
  };
  struct Resource {
    double capacity = 0.0;
    double total = 0.0;   // weight of all active flows
    double left = 0.0;    // while solving: capacity not yet given away,
    double weight = 0.0;  // and the weight of the flows that still rise
    uint32_t rising = 0;
    uint32_t visit = 0;
    bool touched = false;
    std::vector<Member> members;
  };
  struct Flow {
    uint32_t begin = 0, end = 0;  // places
    bool active = false;
  };
  struct Place {
    ResourceId resource;
    uint32_t member;
    double weight;
  };
  // Of the heap of resources: full at `level` unless flows of it stop before.
  struct Full {
    double level;
    ResourceId resource;
    bool operator<(const Full& other) const {
      return level != other.level ? level > other.level : resource > other.resource;
    }
  };

  void touch(ResourceId resource, double level);
  void visit(ResourceId resource);
  void settle(uint32_t flow, double rate);

  double limit_;
  std::vector<Resource> resources_;
  std::vector<Flow> flows_;
  // Of flows, apart from the rest: solving goes through these many times.
  std::vector<double> rates_;
  std::vector<uint32_t> visits_;
  std::vector<uint8_t> rises_;
  std::vector<Place> places_;
  std::vector<ResourceId> touched_;
  double level_ = 0.0;  // below which no change is felt
  uint32_t round_ = 0;
  std::vector<ResourceId> visited_;
  std::vector<uint32_t> rising_;
  std::vector<Full> heap_;
  std::vector<Changed> changed_;
};

}  // namespace leeboard::sim

// Which links a message takes: given routes, else shortest paths, found when they are first asked
// for.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "network.h"
#include "platform.h"

namespace leeboard::sim {

struct Route {
  std::span<const ResourceId> resources;
  Time latency = 0;
  Time overhead = 0;
  double bandwidth = 0.0;  // the least on the way, nominal
};

// Shortest is least latency, then fewest links. Among equals the way is drawn at every step from
// (source, target), so that pairs spread over equal paths and a pair keeps to one.
class Routes {
 public:
  // Throws std::runtime_error if a given route does not connect its ends.
  explicit Routes(const Platform& platform);

  // Between two different devices; valid as long as this. Throws std::runtime_error if there is no
  // way.
  const Route& find(uint32_t source, uint32_t target);

 private:
  struct Hop {
    uint32_t node, link;
  };
  struct Distance {
    Time latency = kNever;
    uint32_t hops = UINT32_MAX;
    auto operator<=>(const Distance&) const = default;
  };
  using Distances = std::vector<Distance>;

  std::span<const Hop> hops(uint32_t node) const {
    return {hops_.data() + offsets_[node], hops_.data() + offsets_[node + 1]};
  }
  ResourceId resource(uint32_t link, uint32_t from) const;
  const Route& keep(uint64_t key, const std::vector<ResourceId>& resources);
  const Distances& measure(uint32_t from, uint32_t to);
  void search(uint32_t from, uint32_t to, Distances& distances, std::vector<uint32_t>* touched);

  const Platform& platform_;
  // The neighbours of node n: hops_[offsets_[n] .. offsets_[n + 1]).
  std::vector<uint64_t> offsets_;
  std::vector<Hop> hops_;
  std::unordered_map<uint64_t, Route> routes_;
  std::vector<std::unique_ptr<ResourceId[]>> storage_;
  size_t room_ = 0;
  ResourceId* next_ = nullptr;
  // A node that many routes begin at is measured to the ends of the graph, others as far as needed.
  std::unordered_map<uint32_t, Distances> measured_;
  std::unordered_map<uint32_t, uint32_t> asked_;
  Distances partial_;
  std::vector<uint32_t> touched_;
  std::vector<ResourceId> found_;
};

}  // namespace leeboard::sim

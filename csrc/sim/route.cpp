#include "route.h"

#include <algorithm>
#include <queue>
#include <stdexcept>
#include <string>
#include <tuple>

#include "random.h"

namespace leeboard::sim {
namespace {

// Routes from one node, after which it is measured in full.
constexpr uint32_t kOften = 8;
// Distances kept, over all nodes that are measured in full.
constexpr size_t kMostDistances = size_t{1} << 24;
constexpr size_t kBlock = 4096;

uint64_t key_of(uint32_t source, uint32_t target) { return (uint64_t{source} << 32) | target; }

std::string pair_name(uint32_t source, uint32_t target) {
  return "device " + std::to_string(source) + " to device " + std::to_string(target);
}

}  // namespace

Routes::Routes(const Platform& platform) : platform_(platform) {
  const size_t nodes = platform.devices.size() + platform.switches;
  offsets_.assign(nodes + 1, 0);
  for (const Link& link : platform.links) {
    ++offsets_[link.a + 1];
    ++offsets_[link.b + 1];
  }
  for (size_t n = 0; n < nodes; ++n) offsets_[n + 1] += offsets_[n];
  hops_.resize(offsets_.back());
  std::vector<uint64_t> place(offsets_.begin(), offsets_.end() - 1);
  for (uint32_t link = 0; link < platform.links.size(); ++link) {
    const Link& l = platform.links[link];
    hops_[place[l.a]++] = {l.b, link};
    hops_[place[l.b]++] = {l.a, link};
  }
  for (const GivenRoute& given : platform.routes) {
    found_.clear();
    uint32_t node = given.source;
    for (const uint32_t link : given.links) {
      const Link& l = platform.links[link];
      if (l.a != node && l.b != node) {
        throw std::runtime_error("the route of " + pair_name(given.source, given.target) +
                                 " breaks at link " + std::to_string(link));
      }
      found_.push_back(resource(link, node));
      node = l.a == node ? l.b : l.a;
    }
    if (node != given.target || found_.empty()) {
      throw std::runtime_error("the route of " + pair_name(given.source, given.target) +
                               " does not get there");
    }
    keep(key_of(given.source, given.target), found_);
  }
}

ResourceId Routes::resource(uint32_t link, uint32_t from) const {
  const Link& l = platform_.links[link];
  return 2 * link + (l.full_duplex && l.a != from ? 1 : 0);
}

const Route& Routes::keep(uint64_t key, const std::vector<ResourceId>& resources) {
  if (room_ < resources.size()) {
    room_ = std::max(kBlock, resources.size());
    storage_.push_back(std::make_unique<ResourceId[]>(room_));
    next_ = storage_.back().get();
  }
  std::copy(resources.begin(), resources.end(), next_);
  Route route;
  route.resources = {next_, resources.size()};
  next_ += resources.size();
  room_ -= resources.size();
  route.bandwidth = platform_.links[resources[0] / 2].bandwidth;
  for (const ResourceId id : resources) {
    const Link& link = platform_.links[id / 2];
    route.latency += link.latency;
    route.overhead += link.overhead;
    route.bandwidth = std::min(route.bandwidth, link.bandwidth);
  }
  return routes_.insert_or_assign(key, route).first->second;
}

const Route& Routes::find(uint32_t source, uint32_t target) {
  const uint64_t key = key_of(source, target);
  if (const auto it = routes_.find(key); it != routes_.end()) return it->second;
  // A device on one link goes to its other end and comes from there, whatever is beyond.
  uint32_t from = source, to = target;
  const auto out = hops(source), in = hops(target);
  const bool leaf_out = out.size() == 1 && out[0].node != target;
  const bool leaf_in = in.size() == 1 && in[0].node != source;
  if (leaf_out) from = out[0].node;
  if (leaf_in) to = in[0].node;
  found_.clear();
  // From the target back.
  if (leaf_in) found_.push_back(resource(in[0].link, to));
  if (from != to) {
    const Distances& distances = measure(from, to);
    if (distances[to].latency == kNever) {
      throw std::runtime_error("no route from " + pair_name(source, target));
    }
    for (uint32_t node = to; node != from;) {
      const auto leads = [&](const Hop& hop) {
        const Distance& before = distances[hop.node];
        return before.latency != kNever &&
               Distance{before.latency + platform_.links[hop.link].latency, before.hops + 1} ==
                   distances[node];
      };
      const auto ways =
          static_cast<uint64_t>(std::count_if(hops(node).begin(), hops(node).end(), leads));
      uint64_t drawn = ways == 1 ? 0 : mix(key + 0x9e3779b97f4a7c15 * (node + 1)) % ways;
      for (const Hop& hop : hops(node)) {
        if (leads(hop) && drawn-- == 0) {
          found_.push_back(resource(hop.link, hop.node));
          node = hop.node;
          break;
        }
      }
    }
  }
  if (leaf_out) found_.push_back(resource(out[0].link, source));
  if (found_.empty()) throw std::runtime_error("no route from " + pair_name(source, target));
  std::reverse(found_.begin(), found_.end());
  return keep(key, found_);
}

const Routes::Distances& Routes::measure(uint32_t from, uint32_t to) {
  if (const auto it = measured_.find(from); it != measured_.end()) return it->second;
  const size_t nodes = offsets_.size() - 1;
  if (++asked_[from] > kOften) {
    if ((measured_.size() + 1) * nodes > kMostDistances) measured_.clear();
    Distances& distances = measured_[from];
    distances.resize(nodes);
    search(from, UINT32_MAX, distances, nullptr);
    return distances;
  }
  partial_.resize(nodes);
  for (const uint32_t node : touched_) partial_[node] = {};
  touched_.clear();
  search(from, to, partial_, &touched_);
  return partial_;
}

// Dijkstra's, until `to` is reached.
void Routes::search(uint32_t from, uint32_t to, Distances& distances,
                    std::vector<uint32_t>* touched) {
  using Entry = std::pair<Distance, uint32_t>;
  std::priority_queue<Entry, std::vector<Entry>, std::greater<>> open;
  const auto reach = [&](uint32_t node, const Distance& distance) {
    if (distance >= distances[node]) return;
    if (touched != nullptr && distances[node].latency == kNever) touched->push_back(node);
    distances[node] = distance;
    open.emplace(distance, node);
  };
  reach(from, {0, 0});
  while (!open.empty()) {
    const auto [distance, node] = open.top();
    open.pop();
    if (distance != distances[node]) continue;
    if (node == to) return;
    for (const Hop& hop : hops(node)) {
      const Time latency = platform_.links[hop.link].latency;
      reach(hop.node, {distance.latency + latency, distance.hops + 1});
    }
  }
}

}  // namespace leeboard::sim

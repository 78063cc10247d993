// Fair sharing against progressive filling, and messages over random graphs.
#include "sim/flow.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <string>

#include "check.h"
#include "parts.h"
#include "sim/event_queue.h"
#include "sim/max_min.h"

namespace leeboard::sim {
namespace {

using test::context;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Traffic {
  std::vector<double> capacities;
  double limit;
  std::vector<std::vector<MaxMin::Share>> flows;
  std::vector<bool> active;
};

// All rates rise together; what meets a full resource stops.
std::vector<double> fill(const Traffic& traffic) {
  const size_t count = traffic.flows.size();
  std::vector<double> rates(count, 0.0);
  std::vector<bool> rises = traffic.active;
  while (std::find(rises.begin(), rises.end(), true) != rises.end()) {
    double step = kInfinity;
    std::vector<double> left = traffic.capacities;
    std::vector<double> weight(left.size(), 0.0);
    for (size_t f = 0; f < count; ++f) {
      if (!traffic.active[f]) continue;
      if (rises[f]) step = std::min(step, traffic.limit - rates[f]);
      for (const auto& share : traffic.flows[f]) {
        left[share.resource] -= share.weight * rates[f];
        if (rises[f]) weight[share.resource] += share.weight;
      }
    }
    for (size_t r = 0; r < left.size(); ++r) {
      if (weight[r] > 0.0) step = std::min(step, std::max(0.0, left[r]) / weight[r]);
    }
    for (size_t f = 0; f < count; ++f) {
      if (!rises[f]) continue;
      rates[f] += step;
      bool full = rates[f] >= traffic.limit * (1 - 1e-12);
      for (const auto& share : traffic.flows[f]) {
        const double room = left[share.resource] - step * weight[share.resource];
        full |= room <= 1e-9 * traffic.capacities[share.resource];
      }
      if (full) rises[f] = false;
    }
  }
  return rates;
}

LEEBOARD_TEST(flow_rates_are_those_of_progressive_filling) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    context = "seed " + std::to_string(seed);
    RandomStream random(seed, 2);
    Traffic traffic;
    const uint64_t resources = 1 + random.bits() % 20;
    for (uint64_t i = 0; i < resources; ++i) {
      traffic.capacities.push_back(1e6 * static_cast<double>(1 + random.bits() % 50));
    }
    traffic.limit = random.bits() % 2 == 0 ? kInfinity : 7e6;
    MaxMin solver(traffic.capacities, traffic.limit);
    const uint64_t flows = 1 + random.bits() % 40;
    for (uint64_t f = 0; f < flows; ++f) {
      std::vector<MaxMin::Share> shares;
      for (uint64_t k = 1 + random.bits() % 4; k > 0; --k) {
        const double weight = random.bits() % 3 == 0 ? 0.09 : 1.0;
        shares.push_back({static_cast<ResourceId>(random.bits() % resources), weight});
      }
      CHECK(solver.add(shares) == f);
      traffic.flows.push_back(shares);
      traffic.active.push_back(false);
    }
    for (int change = 0; change < 60; ++change) {
      for (uint64_t k = 1 + random.bits() % 5; k > 0; --k) {
        const auto f = static_cast<uint32_t>(random.bits() % flows);
        if (traffic.active[f]) {
          solver.deactivate(f);
        } else {
          solver.activate(f);
        }
        traffic.active[f] = !traffic.active[f];
      }
      if (random.bits() % 10 == 0) {
        const auto r = static_cast<ResourceId>(random.bits() % resources);
        traffic.capacities[r] = 1e6 * static_cast<double>(1 + random.bits() % 50);
        solver.set_capacity(r, traffic.capacities[r]);
      }
      solver.solve();
      const std::vector<double> expected = fill(traffic);
      for (uint32_t f = 0; f < flows; ++f) {
        if (traffic.active[f]) CHECK(std::abs(solver.rate(f) - expected[f]) <= 1e-6 * expected[f]);
      }
    }
  }
}

// Runs a network alone: starts messages at random times and keeps its timers.
class Driver final : public NetworkSink {
 public:
  explicit Driver(const Platform& platform)
      : routes_(platform), network_(platform, routes_, *this, nullptr) {}

  void add(uint32_t source, uint32_t target, uint64_t bytes, Time start) {
    queue_.push(start, messages_.size());
    messages_.push_back({source, target, bytes, start, 0, false});
  }

  void delivered(uint32_t message, Time departed, Time arrived) override {
    CHECK(!messages_[message].done);
    messages_[message].done = true;
    CHECK(departed >= now_ && arrived >= departed);
    messages_[message].arrived = arrived;
    order_[{messages_[message].source, messages_[message].target}].push_back(message);
  }
  void schedule(Time at, uint64_t data) override {
    CHECK(at >= now_);
    queue_.push(at, kTimer | data);
  }

  void run() {
    while (!queue_.empty()) {
      const Event event = queue_.pop();
      now_ = event.time;
      if ((event.data & kTimer) != 0) {
        network_.on_timer(event.data & ~kTimer, now_);
      } else {
        const Message& m = messages_[event.data];
        started_[{m.source, m.target}].push_back(static_cast<uint32_t>(event.data));
        network_.start(static_cast<uint32_t>(event.data), m.source, m.target, m.bytes, 0, now_);
      }
      if (queue_.next_time() != now_) network_.settle(now_);
    }
    for (const Message& m : messages_) {
      CHECK(m.done);
      // Sharing never helps; a picosecond a rounding.
      CHECK(m.arrived + 2 >= m.start + network_.ideal(m.source, m.target, m.bytes));
    }
    CHECK(order_ == started_);
  }

 private:
  static constexpr uint64_t kTimer = uint64_t{1} << 63;
  using Pair = std::pair<uint32_t, uint32_t>;

  struct Message {
    uint32_t source, target;
    uint64_t bytes;
    Time start, arrived;
    bool done;
  };

  EventQueue queue_;
  Routes routes_;
  FlowNetwork network_;
  Time now_ = 0;
  std::vector<Message> messages_;
  std::map<Pair, std::vector<uint32_t>> started_, order_;
};

LEEBOARD_TEST(flow_delivers_every_message_once_and_in_order) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    context = "seed " + std::to_string(seed);
    RandomStream random(seed, 3);
    Platform platform = test::random_graph(2 + static_cast<uint32_t>(random.bits() % 8),
                                           static_cast<uint32_t>(random.bits() % 5), random);
    platform.protocol.cross_traffic = seed % 2 == 0 ? 0.09 : 0.0;
    platform.protocol.goodput = seed % 3 == 0 ? 0.956 : 1.0;
    platform.protocol.rate_limit = seed % 5 == 0 ? 2e8 : 0.0;
    Driver driver(platform);
    const uint64_t devices = platform.devices.size();
    for (int m = 0; m < 120; ++m) {
      const uint64_t source = random.bits() % devices;
      const uint64_t target = (source + 1 + random.bits() % (devices - 1)) % devices;
      driver.add(static_cast<uint32_t>(source), static_cast<uint32_t>(target),
                 random.bits() % 5 == 0 ? 0 : random.bits() % 3'000'000,
                 random.bits() % 4 * 1'000'000'000);
    }
    driver.run();
  }
}

LEEBOARD_TEST(flow_delivers_any_number_of_empty_messages) {
  const Platform platform = test::star(2);
  Driver driver(platform);
  for (int m = 0; m < 100'000; ++m) driver.add(0, 1, m == 0 ? 1000 : 0, 0);
  driver.run();
}

}  // namespace
}  // namespace leeboard::sim

// A network without programs: messages at given times, for tests and measurements of networks.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "event_queue.h"
#include "network.h"
#include "platform.h"

namespace leeboard::sim {

struct Offer {
  Time at;
  uint32_t source, target;
  uint64_t bytes;
};

// kNever: not in the end.
struct Delivery {
  Time departed = kNever, arrived = kNever;
};

class Carrier final : public NetworkSink {
 public:
  using Make = std::function<std::unique_ptr<Network>(NetworkSink&)>;

  Carrier(const Platform& platform, std::span<const Offer> offers, const Make& make)
      : platform_(platform), offers_(offers), deliveries_(offers.size()), network_(make(*this)) {}

  // Until nothing happens any more; links change as the platform says. In order of the offers.
  const std::vector<Delivery>& run() {
    for (uint32_t i = 0; i < offers_.size(); ++i) queue_.push(offers_[i].at, kStart | i);
    const auto& changes = platform_.link_changes;
    for (uint32_t i = 0; i < changes.size(); ++i) queue_.push(changes[i].at, kChange | i);
    while (!queue_.empty()) {
      const auto next = queue_.pop();
      handle(next.data, next.time);
      if (queue_.empty() || queue_.next_time() > next.time) network_->settle(next.time);
    }
    return deliveries_;
  }

  Network& network() { return *network_; }

  void delivered(uint32_t message, Time departed, Time arrived) override {
    deliveries_[message] = {departed, arrived};
  }
  void schedule(Time at, uint64_t data) override { queue_.push(at, data); }

 private:
  static constexpr uint64_t kStart = uint64_t{1} << 62, kChange = uint64_t{1} << 63;

  void handle(uint64_t data, Time now) {
    const auto index = static_cast<uint32_t>(data);
    if ((data & kStart) != 0) {
      const Offer& offer = offers_[index];
      network_->start(index, offer.source, offer.target, offer.bytes, 0, now);
    } else if ((data & kChange) != 0) {
      const Change& change = platform_.link_changes[index];
      network_->set_factor(change.index, change.factor, now);
    } else {
      network_->on_timer(data, now);
    }
  }

  const Platform& platform_;
  std::span<const Offer> offers_;
  std::vector<Delivery> deliveries_;
  EventQueue queue_;
  std::unique_ptr<Network> network_;
};

}  // namespace leeboard::sim

// The fast network: a message takes latency + bytes / bandwidth, and the first and the last link of
// its route carry one message at a time. Links in between do not contend.
#pragma once

#include <vector>

#include "mailbox.h"
#include "network.h"
#include "platform.h"
#include "route.h"
#include "usage.h"

namespace leeboard::sim {

class AlphaBeta final : public Network {
 public:
  AlphaBeta(const Platform& platform, Routes& routes, NetworkSink& sink, Usage* usage);

  void start(uint32_t message, uint32_t source, uint32_t target, uint64_t bytes, Time delay,
             Time now) override;
  void on_timer(uint64_t data, Time now) override;
  void settle(Time) override {}
  Time latency(uint32_t source, uint32_t target) override;
  Time ideal(uint32_t source, uint32_t target, uint64_t bytes) override;
  void set_factor(uint32_t link, double factor, Time now) override;
  // How long a message keeps its first link.
  Time length(uint32_t source, uint32_t target, uint64_t bytes);
  // When a resource has carried what it was given.
  Time& free(ResourceId resource) { return free_[resource]; }

 private:
  struct Waiting {
    uint32_t message, source, target;
    uint64_t bytes;
    Time delay;
  };

  // A message that has got its first link.
  struct Leaving {
    uint32_t message;  // of a free place: the next one
    const Route* route;
    Time begin, length, delay;
    uint64_t bytes;
  };

  double bandwidth(const Route& route) const;
  void leave(const Leaving& leaving);

  const Platform& platform_;
  Routes& routes_;
  NetworkSink& sink_;
  Usage* usage_;
  std::vector<Time> free_;
  std::vector<double> factor_;
  bool nominal_ = true;
  // Messages whose first link is busy until they leave, and how many of them each link has.
  std::vector<uint32_t> queued_;
  std::vector<Leaving> leaving_;
  uint32_t free_place_ = kNil;
  // Messages on routes with a link that is down, in order.
  std::vector<Waiting> waiting_;
};

}  // namespace leeboard::sim

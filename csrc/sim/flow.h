// The network in which messages are flows: all that are under way share the links of their routes
// max-min fairly, and every change of the traffic changes their rates.
#pragma once

#include <span>
#include <unordered_map>
#include <vector>

#include "earliest.h"
#include "max_min.h"
#include "network.h"
#include "platform.h"
#include "route.h"
#include "service.h"
#include "usage.h"

namespace leeboard::sim {

// A message of a pair of devices: the overheads of its links, then its bytes at the rate that it
// gets; it has arrived a latency after its last byte left. The pair's next message begins then. Its
// acknowledgements take `cross_traffic` of its rate on the way back. Rates are of payload:
// capacities are bandwidth times goodput.
//
// A flow that has its links to itself has nothing to share: its end is known when it begins. It
// joins those that share when another one comes to a link of its.
class FlowNetwork final : public Network {
 public:
  FlowNetwork(const Platform& platform, Routes& routes, NetworkSink& sink, Usage* usage);

  void start(uint32_t message, uint32_t source, uint32_t target, uint64_t bytes, Time delay,
             Time now) override;
  void on_timer(uint64_t data, Time now) override;
  void settle(Time now) override;
  Time latency(uint32_t source, uint32_t target) override;
  Time ideal(uint32_t source, uint32_t target, uint64_t bytes) override;
  bool queued(uint32_t source, uint32_t target) const override;
  void set_factor(uint32_t link, double factor, Time now) override;

 private:
  static constexpr uint32_t kNil = UINT32_MAX;

  struct Waiting {
    uint32_t message, next;
    uint64_t bytes;
    Time delay;
  };
  // Of devices; also the number of its flow, of which there is one at a time.
  struct Pair {
    Time latency, overhead;
    double alone;  // its rate when nothing else moves
    uint32_t ways_begin, ways_end;
    // Its messages, the first of which is under way.
    uint32_t first = kNil, last = kNil;
    double left = 0.0;  // bytes, when it began to flow or to share
    // If it has its links to itself: since when, and when it is done.
    Time since = 0, until = kNever;
  };
  // A link that a pair uses, and what share of its rate it takes there.
  struct Way {
    ResourceId resource;
    double weight;
  };

  uint32_t pair_of(uint32_t source, uint32_t target);
  void begin(uint32_t pair, Time now);
  void flow(uint32_t pair, Time now);
  void finish(uint32_t pair, Time now);
  std::span<const Way> ways(const Pair& pair) const {
    return {ways_.data() + pair.ways_begin, ways_.data() + pair.ways_end};
  }
  void close_alone(uint32_t pair, Time now);
  void join_others(uint32_t pair, Time now);
  void update(uint32_t group);
  void watch(Time now);

  const Platform& platform_;
  Routes& routes_;
  NetworkSink& sink_;
  Usage* usage_;
  MaxMin shares_;
  Services services_;
  std::vector<Pair> pairs_;
  std::vector<Way> ways_;
  // Of resources: how many flows use it, and which has it to itself.
  std::vector<uint32_t> users_, owner_;
  bool nominal_ = true;   // no link has ever changed its speed
  bool changed_ = false;  // since rates were last settled
  std::unordered_map<uint64_t, uint32_t> index_;
  std::vector<Waiting> waiting_;
  uint32_t free_ = kNil;
  // When the first flow of each group ends as things are.
  Earliest ends_;
  Time timer_ = kNever;
  std::vector<uint32_t> due_, ended_;
  // Of resources, if links are watched: what they carry, since when.
  std::vector<double> load_;
  std::vector<Time> load_since_;
};

}  // namespace leeboard::sim

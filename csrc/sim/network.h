// What the engine asks of a network, and what it tells the engine.
#pragma once

#include <cstdint>

#include "sim_time.h"

namespace leeboard::sim {

// A link as a resource: 2 * link + 0 from a to b, 2 * link + 1 back; half duplex: 2 * link for
// both.
using ResourceId = uint32_t;

class NetworkSink {
 public:
  virtual ~NetworkSink() = default;
  // The last byte of `message` left its sender at `departed` and reaches the receiver at `arrived`,
  // neither before now.
  virtual void delivered(uint32_t message, Time departed, Time arrived) = 0;
  // Network::on_timer(data) is to be called at `at`.
  virtual void schedule(Time at, uint64_t data) = 0;
};

// Times given to a network never go back.
class Network {
 public:
  virtual ~Network() = default;
  // `message` is ready to leave device `source` for device `target` (not the same). Messages of one
  // pair travel in the order of these calls. `delay` is added to its latency; `bytes` includes
  // retransmissions.
  virtual void start(uint32_t message, uint32_t source, uint32_t target, uint64_t bytes, Time delay,
                     Time now) = 0;
  virtual void on_timer(uint64_t data, Time now) = 0;
  // Called before time leaves `now` if starts or timers came in at `now`.
  virtual void settle(Time now) = 0;
  // One way, of an empty message on an idle network.
  virtual Time latency(uint32_t source, uint32_t target) = 0;
  // What a message of `bytes` takes on an idle network, from start to arrival.
  virtual Time ideal(uint32_t source, uint32_t target, uint64_t bytes) = 0;
  // Whether messages of the pair are under way or wait, so that another one would wait for them.
  virtual bool queued(uint32_t, uint32_t) const { return false; }
  // A link's speed changes.
  virtual void set_factor(uint32_t link, double factor, Time now) = 0;
};

}  // namespace leeboard::sim

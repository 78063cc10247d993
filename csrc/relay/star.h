// A star of links of known rate and delay, as packets see it: when each leaves its sender's link,
// and when it is handed to its receiver. No clock and no input or output of its own: the relay
// gives it the time, and tests a virtual one.
#pragma once

#include <cstdint>
#include <deque>
#include <queue>
#include <unordered_map>
#include <vector>

namespace leeboard::relay {

// Nanoseconds of some steady clock.
using Nanoseconds = int64_t;

// A port's two directions: from the host to the switch (up), and back (down).
struct PortOptions {
  double up_rate;    // bits a second; 0: not limited
  double down_rate;  // the same
  Nanoseconds up_delay, down_delay;
  // Bytes that may wait before a packet is dropped, of each direction.
  uint64_t queue_bytes;
};

struct PortCounters {
  uint64_t packets_up = 0, packets_down = 0;
  // With framing.
  uint64_t bytes_up = 0, bytes_down = 0;
  uint64_t dropped_up = 0, dropped_down = 0;
  // The most that ever waited.
  uint64_t longest_up = 0, longest_down = 0;
};

// A packet that is due: `packet` is what the caller gave.
struct Delivery {
  uint32_t target;
  uint64_t packet;
  Nanoseconds due;
};

// A packet of n bytes takes (n + framing) * 8 / rate on a link, one after the other in each
// direction. The switch forwards as it receives (cut-through): a packet that waits for nobody pays
// the slower of its two links once, and both delays.
//
// On the way up the flows of a host take turns, as under fq_codel, what most Linux distributions
// put on their interfaces (deficit round robin; one that begins goes first); a flow's packets stay
// in order. On the way down, what arrives first at the switch goes first.
class Star {
 public:
  Star(std::vector<PortOptions> ports, uint32_t framing);

  // A packet of `bytes` of a `flow` (any number) leaves a host, not before any that was offered,
  // nor before what advance() was told. False: it is dropped.
  bool offer(Nanoseconds now, uint32_t source, uint32_t target, uint32_t bytes, uint64_t packet,
             uint64_t flow);
  // When something next happens; INT64_MAX: never.
  Nanoseconds next() const;
  // Moves time on; what is due by then is appended to `out` in the order in which it is due, and
  // what the down links drop to `lost`.
  void advance(Nanoseconds now, std::vector<Delivery>& out, std::vector<uint64_t>& lost);

  const PortCounters& counters(uint32_t port) const { return ports_[port].counters; }
  uint32_t ports() const { return static_cast<uint32_t>(ports_.size()); }

 private:
  struct Packet {
    Nanoseconds came;
    uint64_t packet;
    uint32_t target, size;
  };
  struct Flow {
    std::deque<Packet> packets;
    int64_t credit = 0;
    bool listed = false;
  };
  // What waits in one direction.
  struct Up {
    bool sending = false;
    uint64_t waiting = 0;
    std::unordered_map<uint64_t, Flow> flows;
    std::deque<uint64_t> fresh, old;  // flows, in the order of their turns
  };
  struct Down {
    Nanoseconds free = INT64_MIN;
    uint64_t waiting = 0;
    std::deque<std::pair<Nanoseconds, uint32_t>> packets;  // end and size
  };
  struct Port {
    PortOptions options;
    Up up;
    Down down;
    PortCounters counters;
  };
  // A link up is free; or a packet is at the switch (all of it at `end`), or at its host.
  enum class What : uint8_t { kFree, kAtSwitch, kAtHost };
  struct Event {
    Nanoseconds at, end;
    uint64_t order, packet;
    uint32_t port, size;
    What what;

    bool operator>(const Event& other) const {
      return at != other.at ? at > other.at : order > other.order;
    }
  };

  void send_next(uint32_t port, Nanoseconds now);
  bool take_turn(Up& up, Packet& out);
  void push(Nanoseconds at, Nanoseconds end, uint64_t packet, uint32_t port, uint32_t size,
            What what);

  std::vector<Port> ports_;
  uint32_t framing_;
  uint64_t order_ = 0;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
};

}  // namespace leeboard::relay

#include "star.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>

namespace leeboard::relay {
namespace {

// Bytes of a flow's turn: a packet of Ethernet.
constexpr int64_t kTurn = 1514;

Nanoseconds length(uint32_t size, double rate) {
  return rate > 0.0 ? static_cast<Nanoseconds>(std::llround(size * 8e9 / rate)) : 0;
}

}  // namespace

Star::Star(std::vector<PortOptions> ports, uint32_t framing) : framing_(framing) {
  if (ports.empty()) throw std::invalid_argument("ports: got none, expected at least 1");
  for (const PortOptions& options : ports) {
    if (!(options.up_rate >= 0.0 && options.down_rate >= 0.0)) {
      throw std::invalid_argument("rate: expected bits a second, 0 for no limit");
    }
    if (options.up_delay < 0 || options.down_delay < 0) {
      throw std::invalid_argument("delay: expected nanoseconds, 0 or more");
    }
    ports_.push_back({options, {}, {}, {}});
  }
}

void Star::push(Nanoseconds at, Nanoseconds end, uint64_t packet, uint32_t port, uint32_t size,
                What what) {
  events_.push({at, end, order_++, packet, port, size, what});
}

bool Star::offer(Nanoseconds now, uint32_t source, uint32_t target, uint32_t bytes, uint64_t packet,
                 uint64_t flow) {
  if (source >= ports_.size() || target >= ports_.size()) {
    throw std::out_of_range("port: got " + std::to_string(std::max(source, target)) + " of " +
                            std::to_string(ports_.size()));
  }
  Port& port = ports_[source];
  const uint32_t size = bytes + framing_;
  if (port.up.waiting + size > port.options.queue_bytes) {
    ++port.counters.dropped_up;
    return false;
  }
  port.up.waiting += size;
  port.counters.longest_up = std::max(port.counters.longest_up, port.up.waiting);
  Flow& mine = port.up.flows[flow];
  mine.packets.push_back({now, packet, target, size});
  if (!mine.listed) {
    mine.listed = true;
    mine.credit = kTurn;
    port.up.fresh.push_back(flow);
  }
  if (!port.up.sending) send_next(source, now);
  return true;
}

// Whose turn it is: a flow that is new, or has not been here for a while, before the others.
bool Star::take_turn(Up& up, Packet& out) {
  for (;;) {
    const bool fresh = !up.fresh.empty();
    std::deque<uint64_t>& list = fresh ? up.fresh : up.old;
    if (list.empty()) return false;
    const uint64_t name = list.front();
    Flow& flow = up.flows[name];
    if (flow.credit > 0 && !flow.packets.empty()) {
      out = flow.packets.front();
      flow.packets.pop_front();
      flow.credit -= out.size;
      return true;
    }
    list.pop_front();
    if (flow.packets.empty() && !fresh) {
      up.flows.erase(name);
      continue;
    }
    // Once among the old ones, an empty flow waits its turn before it counts as new again.
    if (flow.credit <= 0) flow.credit += kTurn;
    up.old.push_back(name);
  }
}

void Star::send_next(uint32_t index, Nanoseconds now) {
  Port& port = ports_[index];
  Packet packet;
  port.up.sending = take_turn(port.up, packet);
  if (!port.up.sending) return;
  port.up.waiting -= packet.size;
  ++port.counters.packets_up;
  port.counters.bytes_up += packet.size;
  const Nanoseconds begin = std::max(now, packet.came);
  const Nanoseconds end = begin + length(packet.size, port.options.up_rate);
  const Nanoseconds delay = port.options.up_delay;
  push(begin + delay, end + delay, packet.packet, packet.target, packet.size, What::kAtSwitch);
  push(end, end, 0, index, 0, What::kFree);
}

Nanoseconds Star::next() const { return events_.empty() ? INT64_MAX : events_.top().at; }

void Star::advance(Nanoseconds now, std::vector<Delivery>& out, std::vector<uint64_t>& lost) {
  while (!events_.empty() && events_.top().at <= now) {
    const Event event = events_.top();
    events_.pop();
    if (event.what == What::kAtHost) {
      out.push_back({event.port, event.packet, event.at});
      continue;
    }
    if (event.what == What::kFree) {
      send_next(event.port, event.at);
      continue;
    }
    Port& port = ports_[event.port];
    Down& down = port.down;
    while (!down.packets.empty() && down.packets.front().first <= event.at) {
      down.waiting -= down.packets.front().second;
      down.packets.pop_front();
    }
    if (down.waiting + event.size > port.options.queue_bytes) {
      ++port.counters.dropped_down;
      lost.push_back(event.packet);
      continue;
    }
    const Nanoseconds begin = std::max(event.at, down.free);
    down.free = std::max(begin + length(event.size, port.options.down_rate), event.end);
    down.packets.emplace_back(down.free, event.size);
    down.waiting += event.size;
    ++port.counters.packets_down;
    port.counters.bytes_down += event.size;
    port.counters.longest_down = std::max(port.counters.longest_down, down.waiting);
    push(down.free + port.options.down_delay, 0, event.packet, event.port, event.size,
         What::kAtHost);
  }
}

}  // namespace leeboard::relay

#include "star.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>

namespace leeboard::relay {
namespace {

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

void Star::Line::forget(Nanoseconds now) {
  while (!packets.empty() && packets.front().first <= now) {
    waiting -= packets.front().second;
    packets.pop_front();
  }
}

bool Star::offer(Nanoseconds now, uint32_t source, uint32_t target, uint32_t bytes,
                 uint64_t packet) {
  if (source >= ports_.size() || target >= ports_.size()) {
    throw std::out_of_range("port: got " + std::to_string(std::max(source, target)) + " of " +
                            std::to_string(ports_.size()));
  }
  Port& port = ports_[source];
  const uint32_t size = bytes + framing_;
  port.up.forget(now);
  if (port.up.waiting + size > port.options.queue_bytes) {
    ++port.counters.dropped_up;
    return false;
  }
  const Nanoseconds begin = std::max(now, port.up.free);
  const Nanoseconds end = begin + length(size, port.options.up_rate);
  port.up.free = end;
  port.up.packets.emplace_back(end, size);
  port.up.waiting += size;
  ++port.counters.packets_up;
  port.counters.bytes_up += size;
  port.counters.longest_up = std::max(port.counters.longest_up, port.up.waiting);
  const Nanoseconds delay = port.options.up_delay;
  events_.push({begin + delay, end + delay, order_++, packet, target, size, false});
  return true;
}

Nanoseconds Star::next() const { return events_.empty() ? INT64_MAX : events_.top().at; }

void Star::advance(Nanoseconds now, std::vector<Delivery>& out, std::vector<uint64_t>& lost) {
  while (!events_.empty() && events_.top().at <= now) {
    Event event = events_.top();
    events_.pop();
    Port& port = ports_[event.target];
    if (event.at_host) {
      out.push_back({event.target, event.packet, event.at});
      continue;
    }
    port.down.forget(event.at);
    if (port.down.waiting + event.size > port.options.queue_bytes) {
      ++port.counters.dropped_down;
      lost.push_back(event.packet);
      continue;
    }
    const Nanoseconds begin = std::max(event.at, port.down.free);
    const Nanoseconds end = std::max(begin + length(event.size, port.options.down_rate), event.end);
    port.down.free = end;
    port.down.packets.emplace_back(end, event.size);
    port.down.waiting += event.size;
    ++port.counters.packets_down;
    port.counters.bytes_down += event.size;
    port.counters.longest_down = std::max(port.counters.longest_down, port.down.waiting);
    event.at = end + port.options.down_delay;
    event.order = order_++;
    event.at_host = true;
    events_.push(event);
  }
}

}  // namespace leeboard::relay

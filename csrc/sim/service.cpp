#include "service.h"

#include <algorithm>
#include <cmath>

namespace leeboard::sim {

Time ticks(double bytes, double rate) {
  if (bytes <= 0.0) return 0;
  const double ps = bytes / rate * static_cast<double>(kSecond) - 1e-3;
  return ps < static_cast<double>(kLongest) ? static_cast<Time>(std::ceil(std::max(ps, 0.0)))
                                            : kLongest;
}

void Services::advance(uint32_t group, Time now) {
  Group& g = groups_[group];
  if (g.rate > 0.0) g.served += g.rate * to_seconds(now - g.since);
  g.since = now;
  if (g.heap.empty()) {
    g.served = 0.0;
  } else if (g.served > kWrap) {
    for (Entry& entry : g.heap) entry.end -= g.served;
    g.served = 0.0;
  }
}

void Services::put(Group& group, size_t place, const Entry& entry) {
  group.heap[place] = entry;
  places_[entry.flow] = static_cast<uint32_t>(place);
}

void Services::rise(Group& group, size_t place, const Entry& entry) {
  while (place > 0 && entry < group.heap[(place - 1) / 2]) {
    put(group, place, group.heap[(place - 1) / 2]);
    place = (place - 1) / 2;
  }
  put(group, place, entry);
}

void Services::sink(Group& group, size_t place, const Entry& entry) {
  const size_t size = group.heap.size();
  for (size_t child = 2 * place + 1; child < size; child = 2 * place + 1) {
    if (child + 1 < size && group.heap[child + 1] < group.heap[child]) ++child;
    if (!(group.heap[child] < entry)) break;
    put(group, place, group.heap[child]);
    place = child;
  }
  put(group, place, entry);
}

void Services::remove(Group& group, size_t place) {
  const Entry last = group.heap.back();
  group.heap.pop_back();
  if (place == group.heap.size()) return;
  if (last < group.heap[place]) {
    rise(group, place, last);
  } else {
    sink(group, place, last);
  }
}

void Services::join(uint32_t flow, uint32_t group, double bytes) {
  Group& g = groups_[group];
  const Entry entry{g.served + bytes, flow};
  g.heap.push_back(entry);
  rise(g, g.heap.size() - 1, entry);
}

double Services::part(uint32_t flow, uint32_t group) {
  Group& g = groups_[group];
  const size_t place = places_[flow];
  const double bytes = std::max(g.heap[place].end - g.served, 0.0);
  remove(g, place);
  return bytes;
}

void Services::set_rate(uint32_t group, double rate) {
  groups_[group].rate = groups_[group].heap.empty() ? 0.0 : rate;
}

// For the first of its flows, which exists.
Time Services::left(const Group& group) {
  const double bytes = group.heap[0].end - group.served;
  if (bytes <= group.served * 4e-16) return 0;
  return group.rate > 0.0 ? ticks(bytes, group.rate) : kNever;
}

Time Services::next(uint32_t group) const {
  const Group& g = groups_[group];
  if (g.heap.empty()) return kNever;
  const Time wait = left(g);
  return wait == kNever ? kNever : g.since + wait;
}

void Services::take(uint32_t group, std::vector<uint32_t>& out) {
  Group& g = groups_[group];
  while (!g.heap.empty() && left(g) == 0) {
    out.push_back(g.heap[0].flow);
    remove(g, 0);
  }
}

}  // namespace leeboard::sim

// Flows of one group have one rate, so one clock tells how far they are: the bytes that each of
// them has had. A flow is done when the clock shows what it showed when the flow came, and its
// bytes on top. A change of the group's rate touches none of its flows.
#pragma once

#include <cstdint>
#include <vector>

#include "sim_time.h"

namespace leeboard::sim {

// How long `bytes` take; not longer than the longest run. A thousandth of a picosecond is rounding.
Time ticks(double bytes, double rate);

class Services {
 public:
  explicit Services(size_t groups) : groups_(groups) {}

  // Flows are numbered from 0.
  void add_flow() { places_.push_back(0); }

  // The clock of a group moves on to `now` at the group's rate.
  void advance(uint32_t group, Time now);
  // Groups have been advanced before what follows.
  void join(uint32_t flow, uint32_t group, double bytes);
  // The bytes that the flow still has to carry.
  double part(uint32_t flow, uint32_t group);
  void set_rate(uint32_t group, double rate);
  // When the first of its flows will be done; kNever if none will.
  Time next(uint32_t group) const;
  // Takes out the flows that are done.
  void take(uint32_t group, std::vector<uint32_t>& out);

 private:
  // The clock is set back before it is too coarse.
  static constexpr double kWrap = 0x1p40;

  struct Entry {
    double end;
    uint32_t flow;
    bool operator<(const Entry& other) const {
      return end != other.end ? end < other.end : flow < other.flow;
    }
  };
  struct Group {
    double rate = 0.0, served = 0.0;
    Time since = 0;
    std::vector<Entry> heap;
  };

  static Time left(const Group& group);
  void put(Group& group, size_t place, const Entry& entry);
  void rise(Group& group, size_t place, const Entry& entry);
  void sink(Group& group, size_t place, const Entry& entry);
  void remove(Group& group, size_t place);

  std::vector<Group> groups_;
  std::vector<uint32_t> places_;  // of flows, in their heaps
};

}  // namespace leeboard::sim

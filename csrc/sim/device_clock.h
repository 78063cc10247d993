// When a device is done with a piece of work: speed, efficiency, jitter, slow-downs, outages.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "platform.h"
#include "random.h"
#include "sim_time.h"

namespace leeboard::sim {

// Piecewise linear in log(work), constant beyond its ends.
inline double efficiency(std::span<const double> work, std::span<const double> share,
                         double amount) {
  if (work.empty()) return 1.0;
  if (amount <= work.front()) return share.front();
  if (amount >= work.back()) return share.back();
  const auto above = std::upper_bound(work.begin(), work.end(), amount) - work.begin();
  const double low = std::log(work[above - 1]), high = std::log(work[above]);
  const double part = (std::log(amount) - low) / (high - low);
  return share[above - 1] + part * (share[above] - share[above - 1]);
}

// Seconds that a compute op takes on a device of speed 1 that nothing slows down: the roofline,
// each arm with its own efficiency.
inline double roofline_seconds(const Platform& platform, const Device& device, size_t kind,
                               double flops, double bytes) {
  const double rate = device.flops[kind] > 0.0 ? device.flops[kind] : device.flops[0];
  const auto arm = [&](double amount, double per_second, uint32_t begin, uint32_t end) {
    if (amount <= 0.0) return 0.0;
    const std::span work(platform.curve_work.data() + begin, end - begin);
    const std::span share(platform.curve_efficiency.data() + begin, end - begin);
    return amount / (per_second * efficiency(work, share, amount));
  };
  return std::max(
      arm(flops, rate, device.flops_curve_begin, device.flops_curve_end),
      arm(bytes, device.memory_bandwidth, device.bytes_curve_begin, device.bytes_curve_end));
}

class DeviceClock {
 public:
  Time free = 0;  // the device is busy until then
  Time busy = 0;  // time it has worked or will have worked by `free`
  uint32_t last_record = UINT32_MAX;
  Time stopped = kNever;  // a process found it down for good, from then on

  void set_changes(std::span<const Change> changes) { changes_ = changes; }
  bool steady() const { return changes_.empty(); }

  // Busy time up to `time`.
  Time busy_until(Time time) const {
    return free > time ? busy - std::min(busy, free - time) : busy;
  }

  // When work that takes `length` at factor 1 and begins at `start` ends; kNever if it never does,
  // and then `stopped` is the time from which on nothing moves.
  Time finish(Time start, Time length, Time* stopped) const {
    if (changes_.empty()) return start + length;
    auto next = std::upper_bound(changes_.begin(), changes_.end(), start,
                                 [](Time t, const Change& change) { return t < change.at; });
    double factor = next == changes_.begin() ? 1.0 : (next - 1)->factor;
    double left = static_cast<double>(length);
    Time at = start;
    for (; next != changes_.end(); ++next) {
      const double span = static_cast<double>(next->at - at) * factor;
      if (span >= left && factor > 0.0) break;
      left -= span;
      at = next->at;
      factor = next->factor;
    }
    if (factor <= 0.0) {
      *stopped = at;
      return kNever;
    }
    return at + from_picoseconds(left / factor);
  }

  // The first time from `time` on at which the device is up; kNever as above.
  Time up_from(Time time, Time* stopped) const { return finish(time, 0, stopped); }

 private:
  // Of this device only, ascending in time.
  std::span<const Change> changes_;
};

}  // namespace leeboard::sim

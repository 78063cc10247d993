// Simulated time: unsigned picoseconds. 2^63 ps are 106 days.
#pragma once

#include <cmath>
#include <cstdint>
#include <stdexcept>

namespace leeboard::sim {

using Time = uint64_t;

inline constexpr Time kSecond = 1'000'000'000'000;
// Also "never": nothing is scheduled there.
inline constexpr Time kNever = UINT64_MAX;
inline constexpr Time kLongest = Time{1} << 63;

// Throws where a run would go on for longer than times can tell.
inline Time within(Time time) {
  if (time > kLongest) throw std::overflow_error("the simulation runs past 106 days");
  return time;
}

// Rounds to the nearest picosecond.
inline Time from_picoseconds(double ps) {
  if (!(ps >= 0.0) || ps >= static_cast<double>(kLongest)) {
    throw std::overflow_error("a simulated time outside 0 .. 106 days");
  }
  return static_cast<Time>(std::nearbyint(ps));
}

inline Time from_seconds(double seconds) {
  return from_picoseconds(seconds * static_cast<double>(kSecond));
}

inline double to_seconds(Time time) {
  return static_cast<double>(time) / static_cast<double>(kSecond);
}

// How long `amount` takes at `rate` a second.
inline Time duration(double amount, double rate) { return from_seconds(amount / rate); }

}  // namespace leeboard::sim

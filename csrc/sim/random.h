// Random numbers that are functions of (seed, stream, counter): the order in which a run asks for
// them does not matter.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

namespace leeboard::sim {

// The finaliser of splitmix64 (Steele, Lea, Flood 2014).
inline uint64_t mix(uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9;
  x ^= x >> 27;
  x *= 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

class RandomStream {
 public:
  RandomStream() = default;
  RandomStream(uint64_t seed, uint64_t stream)
      : key_(mix(seed + 0x9e3779b97f4a7c15) ^ mix(stream + 0x2545f4914f6cdd1d)) {}

  uint64_t bits() { return mix(key_ + 0x9e3779b97f4a7c15 * ++counter_); }
  // In (0, 1).
  double uniform() { return (static_cast<double>(bits() >> 12) + 0.5) * 0x1p-52; }
  double exponential(double mean) { return -mean * std::log(uniform()); }
  double normal() {
    const double radius = std::sqrt(-2.0 * std::log(uniform()));
    return radius * std::cos(2.0 * std::numbers::pi * uniform());
  }
  // Mean 1; sigma is that of the logarithm.
  double lognormal(double sigma) { return std::exp(sigma * normal() - 0.5 * sigma * sigma); }
  // Of `trials`, each with `probability`. The normal approximation takes over where it is good.
  uint64_t binomial(uint64_t trials, double probability) {
    const double mean = static_cast<double>(trials) * probability;
    const double variance = mean * (1.0 - probability);
    if (trials > 64 && variance > 25.0) {
      const double value = std::nearbyint(mean + std::sqrt(variance) * normal());
      return static_cast<uint64_t>(std::fmin(std::fmax(value, 0.0), static_cast<double>(trials)));
    }
    if (probability >= 1.0) return trials;
    // Gaps between successes are geometric.
    const double scale = std::log1p(-probability);
    if (scale == 0.0) return 0;
    uint64_t successes = 0;
    double position = 0.0;
    for (;;) {
      position += std::floor(std::log(uniform()) / scale) + 1.0;
      if (position > static_cast<double>(trials)) return successes;
      ++successes;
    }
  }

 private:
  uint64_t key_ = 0;
  uint64_t counter_ = 0;
};

}  // namespace leeboard::sim

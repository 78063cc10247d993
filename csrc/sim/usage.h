// What links carried: in all, and over time in bins whose width doubles as the run outgrows them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "network.h"

namespace leeboard::sim {

class Usage {
 public:
  Usage(size_t resources, uint32_t bins)
      : count_(bins), bytes_(resources), busy_(resources), bins_(resources) {}

  // `bytes` from `from` to `to`, at one rate.
  void add(ResourceId resource, Time from, Time to, double bytes) {
    bytes_[resource] += bytes;
    busy_[resource] += to - from;
    while (to > width_ * count_) widen();
    auto& bins = bins_[resource];
    if (bins.empty()) bins.resize(count_);
    if (from == to) {
      bins[std::min<uint64_t>(from / width_, count_ - 1)] += bytes;
      return;
    }
    const double rate = bytes / static_cast<double>(to - from);
    for (uint64_t bin = from / width_; from < to; ++bin) {
      const Time end = std::min(to, (bin + 1) * width_);
      bins[bin] += rate * static_cast<double>(end - from);
      from = end;
    }
  }

  size_t resources() const { return bytes_.size(); }
  uint32_t bins() const { return count_; }
  Time bin_width() const { return width_; }
  double bytes(ResourceId resource) const { return bytes_[resource]; }
  Time busy(ResourceId resource) const { return busy_[resource]; }
  // Empty if it never carried anything.
  std::span<const double> bytes_by_bin(ResourceId resource) const { return bins_[resource]; }

 private:
  void widen() {
    width_ *= 2;
    for (auto& bins : bins_) {
      if (bins.empty()) continue;
      for (uint32_t i = 0; i < count_; ++i) {
        double sum = 2 * i < count_ ? bins[2 * i] : 0.0;
        if (2 * i + 1 < count_) sum += bins[2 * i + 1];
        bins[i] = sum;
      }
    }
  }

  uint32_t count_;
  Time width_ = 1000;
  std::vector<double> bytes_;
  std::vector<Time> busy_;
  std::vector<std::vector<double>> bins_;
};

}  // namespace leeboard::sim

// The least of many times that change now and then: minima of blocks, of blocks of blocks, and so
// on, made anew when they are asked for.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "sim_time.h"

namespace leeboard::sim {

class Earliest {
 public:
  // All kNever.
  explicit Earliest(size_t count) {
    tiers_.push_back({std::vector<Time>(count, kNever), {}, {}});
    while (tiers_.back().times.size() > 1) {
      const size_t blocks = (tiers_.back().times.size() + kBlock - 1) / kBlock;
      tiers_.back().stale.resize(blocks);
      tiers_.push_back({std::vector<Time>(blocks, kNever), {}, {}});
    }
  }

  void set(uint32_t index, Time time) { set(0, index, time); }

  Time first() {
    for (size_t k = 0; k + 1 < tiers_.size(); ++k) {
      Tier& tier = tiers_[k];
      for (const uint32_t block : tier.list) {
        const auto begin = tier.times.begin() + block * kBlock;
        const auto end = tier.times.begin() + end_of(tier, block);
        tier.stale[block] = 0;
        set(k + 1, block, *std::min_element(begin, end));
      }
      tier.list.clear();
    }
    return tiers_.back().times.empty() ? kNever : tiers_.back().times[0];
  }

  // Appends those that are due, in order of their numbers; first() has been called since set().
  void due(Time now, std::vector<uint32_t>& out) const { due(tiers_.size() - 1, 0, now, out); }

 private:
  static constexpr size_t kBlock = 32;

  struct Tier {
    std::vector<Time> times;
    // Blocks whose minimum, a tier up, may be another.
    std::vector<uint8_t> stale;
    std::vector<uint32_t> list;
  };

  static size_t end_of(const Tier& tier, size_t block) {
    return std::min((block + 1) * kBlock, tier.times.size());
  }

  void set(size_t k, uint32_t index, Time time) {
    Tier& tier = tiers_[k];
    if (tier.times[index] == time) return;
    tier.times[index] = time;
    const auto block = static_cast<uint32_t>(index / kBlock);
    if (tier.stale.empty() || tier.stale[block] != 0) return;
    tier.stale[block] = 1;
    tier.list.push_back(block);
  }

  void due(size_t k, uint32_t index, Time now, std::vector<uint32_t>& out) const {
    if (index >= tiers_[k].times.size() || tiers_[k].times[index] > now) return;
    if (k == 0) return out.push_back(index);
    const size_t end = end_of(tiers_[k - 1], index);
    for (size_t i = index * kBlock; i < end; ++i) due(k - 1, static_cast<uint32_t>(i), now, out);
  }

  std::vector<Tier> tiers_;
};

}  // namespace leeboard::sim

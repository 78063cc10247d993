// The hold model: a queue of constant size from which events are taken and put back later. It
// measures queues, and tells two of them apart.
#pragma once

#include <chrono>
#include <cstdint>
#include <queue>
#include <vector>

#include "event_queue.h"
#include "random.h"

namespace leeboard::sim {

enum class Jumps : uint8_t {
  kExponential = 0,  // mean 1 us
  kBimodal = 1,      // nine of ten around 0.1 us, the others around 10 us
  kTies = 2,         // 1 us for all, as ranks of one program have it
  kNow = 3,          // nine of ten none at all, the others exponential
  kFar = 4,          // one of a hundred 2^40 times as long
};
inline constexpr int kJumps = 5;

// What the queues here are measured against, and checked against.
class StandardQueue {
 public:
  bool empty() const { return queue_.empty(); }
  size_t size() const { return queue_.size(); }
  Time next_time() const { return queue_.empty() ? kNever : queue_.top().time; }
  void push(Time time, uint64_t data) { queue_.push({time, sequence_++, data}); }
  Event pop() {
    const Event event = queue_.top();
    queue_.pop();
    return event;
  }

 private:
  struct Later {
    bool operator()(const Event& a, const Event& b) const {
      return a.time != b.time ? a.time > b.time : a.sequence > b.sequence;
    }
  };
  std::priority_queue<Event, std::vector<Event>, Later> queue_;
  uint64_t sequence_ = 0;
};

// The heap alone.
class HeapQueue {
 public:
  void push(Time time, uint64_t data) { heap_.push({time, sequence_++, data}); }
  Event pop() { return heap_.pop(); }

 private:
  EventHeap heap_;
  uint64_t sequence_ = 0;
};

// Drawn ahead of the measurement: a logarithm costs as much as a hold.
class JumpTable {
 public:
  JumpTable(Jumps jumps, uint64_t seed) : random_(seed, 0), table_(kSize) {
    for (Time& jump : table_) jump = draw(jumps);
  }
  Time operator[](uint64_t i) const { return table_[i % kSize]; }

 private:
  static constexpr uint64_t kSize = 1 << 16;
  static constexpr double kMean = 1e6;

  Time exponential(double mean) { return static_cast<Time>(random_.exponential(mean)); }
  Time draw(Jumps jumps) {
    const double choice = random_.uniform();
    switch (jumps) {
      case Jumps::kBimodal:
        return exponential(choice < 0.9 ? 0.1 * kMean : 10 * kMean);
      case Jumps::kTies:
        return static_cast<Time>(kMean);
      case Jumps::kNow:
        return choice < 0.9 ? 0 : exponential(kMean);
      case Jumps::kFar:
        return exponential(choice < 0.99 ? kMean : kMean * 0x1p40);
      case Jumps::kExponential:
        break;
    }
    return exponential(kMean);
  }

  RandomStream random_;
  std::vector<Time> table_;
};

// The last moment at most.
inline Time later(Time time, Time jump) {
  constexpr Time kLast = kNever - 1;
  return jump > kLast - time ? kLast : time + jump;
}

struct HoldResult {
  double nanoseconds;  // a hold
  uint64_t checksum;   // of everything popped, in order
};

template <typename Queue>
HoldResult hold(Queue& queue, uint64_t pending, uint64_t holds, Jumps jumps, uint64_t seed) {
  const JumpTable table(jumps, seed);
  uint64_t checksum = 0;
  const auto step = [&](uint64_t i) {
    const Event event = queue.pop();
    checksum = (checksum ^ event.time ^ event.sequence << 32 ^ event.data) * 0x9e3779b97f4a7c15;
    queue.push(later(event.time, table[i]), event.data);
  };
  for (uint64_t i = 0; i < pending; ++i) queue.push(table[i], i);
  // The spread of pending times settles first.
  for (uint64_t i = 0; i < pending; ++i) step(pending + i);
  const auto start = std::chrono::steady_clock::now();
  for (uint64_t i = 0; i < holds; ++i) step(2 * pending + i);
  const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - start;
  return {took.count() / static_cast<double>(holds), checksum};
}

}  // namespace leeboard::sim

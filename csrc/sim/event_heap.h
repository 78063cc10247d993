// A 4-ary min-heap of events: one 128-bit comparison orders by time, then by sequence.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "sim_time.h"

namespace leeboard::sim {

struct Event {
  Time time;
  uint64_t sequence;
  uint64_t data;
};

// Keys apart from data: the four children that a pop compares fill one cache line.
class EventHeap {
 public:
  bool empty() const { return keys_.empty(); }
  size_t size() const { return keys_.size(); }
  Time next_time() const { return static_cast<Time>(keys_.front() >> 64); }

  void push(const Event& event) {
    const Key key = Key{event.time} << 64 | event.sequence;
    size_t hole = keys_.size();
    keys_.push_back(key);
    data_.push_back(event.data);
    while (hole > 0) {
      const size_t parent = (hole - 1) / 4;
      if (keys_[parent] < key) break;
      move(hole, parent);
      hole = parent;
    }
    put(hole, key, event.data);
  }

  Event pop() {
    const Event event = at(0);
    const Key key = keys_.back();
    const uint64_t data = data_.back();
    keys_.pop_back();
    data_.pop_back();
    const size_t size = keys_.size();
    if (size == 0) return event;
    size_t hole = 0;
    size_t child = 1;
    for (; child + 4 <= size; child = 4 * hole + 1) {
      // Selected without branches: which child is least is a coin toss to a predictor.
      const size_t low = keys_[child + 1] < keys_[child] ? child + 1 : child;
      const size_t high = keys_[child + 3] < keys_[child + 2] ? child + 3 : child + 2;
      const size_t least = keys_[high] < keys_[low] ? high : low;
      if (key < keys_[least]) {
        put(hole, key, data);
        return event;
      }
      move(hole, least);
      hole = least;
    }
    // The last family of the heap may be incomplete, and has no children.
    if (child < size) {
      size_t least = child;
      for (size_t other = child + 1; other < size; ++other) {
        if (keys_[other] < keys_[least]) least = other;
      }
      if (keys_[least] < key) {
        move(hole, least);
        hole = least;
      }
    }
    put(hole, key, data);
    return event;
  }

  // Moves everything out, in no order.
  void drain(std::vector<Event>& out) {
    for (size_t i = 0; i < keys_.size(); ++i) out.push_back(at(i));
    clear();
  }

  void clear() {
    keys_.clear();
    data_.clear();
  }

 private:
  __extension__ using Key = unsigned __int128;

  Event at(size_t i) const {
    return {static_cast<Time>(keys_[i] >> 64), static_cast<uint64_t>(keys_[i]), data_[i]};
  }
  void move(size_t to, size_t from) {
    keys_[to] = keys_[from];
    data_[to] = data_[from];
  }
  void put(size_t to, Key key, uint64_t data) {
    keys_[to] = key;
    data_[to] = data;
  }

  std::vector<Key> keys_;
  std::vector<uint64_t> data_;
};

}  // namespace leeboard::sim

// The future events of a simulation, in exact order of (time, sequence).
//
// Three tiers. `ready_` holds events of one time, the present as a rule, in order of sequence: what
// is scheduled for now costs an append. `near_` is a heap of the events before `near_end_`. All
// others lie unsorted in the ladder: buckets of equal width, where a bucket that is too full for
// the heap is cut into a rung of narrower buckets when its turn comes, and events beyond every rung
// in a last bucket without end. A small queue never leaves the heap. Bucket boundaries are integers
// (start + index << shift): an event falls into one bucket only, however it is computed.
//
// Events of one time lie in every bucket in order of sequence, so a bucket of one time, as programs
// of equal ranks make them, is ready as it is.
#pragma once

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "event_heap.h"
#include "sim_time.h"

namespace leeboard::sim {

class EventQueue {
 public:
  // A queue that never spills is the heap alone.
  explicit EventQueue(size_t spill = kSpill) : spill_(spill), spill_limit_(spill) {}

  bool empty() const { return size_ == 0; }
  size_t size() const { return size_; }

  // `time` is not before that of the last event popped. Sequence numbers count the pushes.
  void push(Time time, uint64_t data) {
    assert(time >= now_);
    const Event event{time, sequence_++, data};
    ++size_;
    if (time == ready_time_) {
      append(ready_, event);
    } else if (time < near_end_ || near_end_ == kNever) {
      near_.push(event);
      if (near_.size() > spill_limit_) spill();
    } else {
      append(bucket_of(time), event);
    }
  }

  // Of the first event; kNever if there is none.
  Time next_time() {
    if (size_ == 0) return kNever;
    if (near_.empty() && ready_.count == 0) refill();
    return near_first() ? near_.next_time() : ready_time_;
  }

  // The queue is not empty.
  Event pop() {
    assert(size_ > 0);
    if (near_.empty() && ready_.count == 0) refill();
    --size_;
    if (near_first()) {
      const Event event = near_.pop();
      now_ = event.time;
      // What is pushed for this time from here on comes after all that the heap holds of it.
      if (ready_.count == 0) ready_time_ = event.time;
      return event;
    }
    const Event event = take_ready();
    now_ = event.time;
    return event;
  }

  // As new: time and sequence start over.
  void clear() { *this = EventQueue(spill_); }

 private:
  // More events than this leave the heap for the ladder.
  static constexpr size_t kSpill = 128;
  // At most so many go from a bucket to the heap.
  static constexpr size_t kPour = 32;
  static constexpr size_t kPerBucket = 8;
  static constexpr size_t kMaxBuckets = 1024;
  // So many are kept when no event lies in any.
  static constexpr size_t kKeep = 256;
  static constexpr uint32_t kNone = UINT32_MAX;

  // Buckets are chains of chunks, which they share.
  struct Chunk {
    static constexpr uint32_t kEvents = 21;
    Event events[kEvents];
    uint32_t next;
  };
  struct Bucket {
    uint32_t first = kNone, last = kNone;
    uint32_t room = 0;  // in the last chunk
    uint64_t count = 0;
  };
  // Events from near_end_ to `end`. Buckets before `current` are spent.
  struct Rung {
    Time start, end;
    int shift;
    size_t current;
    std::vector<Bucket> buckets;

    Bucket& of(Time time) { return buckets[(time - start) >> shift]; }
    Time end_of(size_t bucket) const {
      const Time last = start + ((Time{bucket} << shift) | ((Time{1} << shift) - 1));
      return last < start ? end : std::min(last, end - 1) + 1;
    }
  };

  bool near_first() const {
    return !near_.empty() && (ready_.count == 0 || near_.next_time() <= ready_time_);
  }

  // The narrowest bucket that takes this time, which is not before near_end_.
  Bucket& bucket_of(Time time) {
    for (size_t r = depth_; r-- > 0;) {
      if (time < rungs_[r].end) return rungs_[r].of(time);
    }
    return far_;
  }

  void append(Bucket& bucket, const Event& event) {
    if (bucket.room == 0) extend(bucket);
    Chunk& chunk = chunks_[bucket.last];
    chunk.events[Chunk::kEvents - bucket.room--] = event;
    ++bucket.count;
  }

  void extend(Bucket& bucket) {
    uint32_t added = free_;
    if (added != kNone) {
      free_ = chunks_[added].next;
    } else {
      added = static_cast<uint32_t>(chunks_.size());
      chunks_.emplace_back();
    }
    chunks_[added].next = kNone;
    if (bucket.last == kNone) {
      bucket.first = added;
    } else {
      chunks_[bucket.last].next = added;
    }
    bucket.last = added;
    bucket.room = Chunk::kEvents;
  }

  // Returns the chunk after it.
  uint32_t give_back(uint32_t chunk) {
    const uint32_t next = chunks_[chunk].next;
    chunks_[chunk].next = free_;
    free_ = chunk;
    return next;
  }

  Event take_ready() {
    const Event event = chunks_[ready_.first].events[ready_taken_++];
    if (--ready_.count == 0) {
      give_back(ready_.first);
      ready_ = Bucket{};
      ready_taken_ = 0;
      if (near_.size() == size_) trim();
    } else if (ready_taken_ == Chunk::kEvents) {
      ready_.first = give_back(ready_.first);
      ready_taken_ = 0;
    }
    return event;
  }

  // All chunks are free.
  void trim() {
    if (chunks_.size() <= kKeep) return;
    // Assigning {} would keep the capacity.
    chunks_ = std::vector<Chunk>();
    free_ = kNone;
  }

  // Calls take(event) for all events of a bucket, in order.
  template <typename Take>
  void each(const Bucket& bucket, Take take) {
    uint64_t left = bucket.count;
    for (uint32_t c = bucket.first; c != kNone; c = chunks_[c].next) {
      const uint64_t here = std::min<uint64_t>(left, Chunk::kEvents);
      for (uint64_t i = 0; i < here; ++i) take(chunks_[c].events[i]);
      left -= here;
    }
  }

  // The same, and the bucket is empty afterwards. `take` may append to other buckets.
  template <typename Take>
  void consume(Bucket& bucket, Take take) {
    uint64_t left = bucket.count;
    uint32_t c = bucket.first;
    bucket = Bucket{};
    while (c != kNone) {
      const uint64_t here = std::min<uint64_t>(left, Chunk::kEvents);
      for (uint64_t i = 0; i < here; ++i) {
        const Event event = chunks_[c].events[i];
        take(event);
      }
      left -= here;
      c = give_back(c);
    }
  }

  // Puts a rung for `count` events from `first` to `last` on the ladder; it ends before `end`.
  Rung& add_rung(Time first, Time last, Time end, uint64_t count) {
    if (depth_ == rungs_.size()) rungs_.emplace_back();
    Rung& rung = rungs_[depth_++];
    const uint64_t wanted = std::bit_ceil(std::clamp<uint64_t>(count / kPerBucket, 2, kMaxBuckets));
    const uint64_t range = last - first;
    rung.start = first;
    rung.shift = std::max(
        0, static_cast<int>(std::bit_width(range)) - static_cast<int>(std::bit_width(wanted) - 1));
    rung.current = 0;
    rung.buckets.assign((range >> rung.shift) + 1, Bucket{});
    rung.end = end;
    rung.end = rung.end_of(rung.buckets.size() - 1);
    return rung;
  }

  // Moves what the heap holds later than the present into a rung of its own.
  void spill() {
    near_.drain(sorted_);
    std::sort(sorted_.begin(), sorted_.end(), [](const Event& a, const Event& b) {
      return a.time != b.time ? a.time < b.time : a.sequence < b.sequence;
    });
    // near_end_ stays above ready_time_: nothing in the ladder comes before what is ready.
    const auto split = std::partition_point(
        sorted_.begin(), sorted_.end(), [this](const Event& e) { return e.time <= ready_time_; });
    for (auto event = sorted_.begin(); event != split; ++event) near_.push(*event);
    const auto moved = static_cast<uint64_t>(sorted_.end() - split);
    if (moved > 0) {
      // The ladder is empty, or this rung takes all up to near_end_: the others are spent until
      // then.
      if (near_end_ == kNever) depth_ = 0;
      const Time last = near_end_ == kNever ? sorted_.back().time : near_end_ - 1;
      Rung& rung = add_rung(split->time, last, near_end_, moved);
      near_end_ = split->time;
      for (auto event = split; event != sorted_.end(); ++event) {
        append(rung.of(event->time), *event);
      }
    }
    sorted_.clear();
    spill_limit_ = std::max(spill_, 2 * near_.size());
  }

  void pour(Bucket& bucket, Time end) {
    consume(bucket, [this](const Event& event) { near_.push(event); });
    near_end_ = end;
    spill_limit_ = spill_;
  }

  // Heap and ready are empty, the ladder is not: brings the next events near.
  void refill() {
    for (;;) {
      Bucket* bucket = &far_;
      Time end = kNever;
      if (depth_ > 0) {
        Rung& rung = rungs_[depth_ - 1];
        while (rung.current < rung.buckets.size() && rung.buckets[rung.current].count == 0) {
          ++rung.current;
        }
        if (rung.current == rung.buckets.size()) {
          --depth_;
          continue;
        }
        bucket = &rung.buckets[rung.current];
        end = rung.end_of(rung.current);
      }
      if (bucket->count <= kPour) {
        pour(*bucket, end);
        if (depth_ > 0) {
          ++rungs_[depth_ - 1].current;
        } else {
          trim();
        }
        return;
      }
      Time first = kNever;
      Time last = 0;
      each(*bucket, [&](const Event& event) {
        first = std::min(first, event.time);
        last = std::max(last, event.time);
      });
      if (first == last) {
        ready_ = *bucket;
        *bucket = Bucket{};
        ready_time_ = first;
        near_end_ = first + 1;
        return;
      }
      // The bucket stays current, for events beyond its new rung.
      const uint64_t count = bucket->count;
      Bucket taken = *bucket;
      *bucket = Bucket{};
      Rung& rung = add_rung(first, last, end, count);
      consume(taken, [&](const Event& event) { append(rung.of(event.time), event); });
    }
  }

  size_t spill_, spill_limit_;
  size_t size_ = 0;
  uint64_t sequence_ = 0;
  Time now_ = 0;

  Bucket ready_;
  // What has been taken of its first chunk.
  uint32_t ready_taken_ = 0;
  Time ready_time_ = 0;

  EventHeap near_;
  Time near_end_ = kNever;

  std::vector<Rung> rungs_;
  size_t depth_ = 0;
  Bucket far_;
  std::vector<Chunk> chunks_;
  uint32_t free_ = kNone;
  std::vector<Event> sorted_;
};

}  // namespace leeboard::sim

// The event queue against std::priority_queue, and what it takes of memory.
#include <string>

#include "allocated.h"
#include "check.h"
#include "sim/event_queue.h"
#include "sim/hold.h"

namespace leeboard::sim {
namespace {

using test::context;

constexpr Time kLast = kNever - 1;

// Both queues side by side.
class Pair {
 public:
  size_t size() const { return expected_.size(); }
  Time now() const { return now_; }
  void push(Time time) {
    queue_.push(time, ++pushed_);
    expected_.push(time, pushed_);
    CHECK(queue_.size() == expected_.size());
  }
  void push_after(Time jump) { push(later(now_, jump)); }
  void pop() {
    const Event got = queue_.pop();
    const Event wanted = expected_.pop();
    CHECK(got.time == wanted.time);
    CHECK(got.sequence == wanted.sequence);
    CHECK(got.data == wanted.data);
    now_ = got.time;
  }
  void look() { CHECK(queue_.next_time() == expected_.next_time()); }
  void drain() {
    while (size() > 0) pop();
    CHECK(queue_.empty());
    CHECK(queue_.next_time() == kNever);
  }

 private:
  EventQueue queue_;
  StandardQueue expected_;
  uint64_t pushed_ = 0;
  Time now_ = 0;
};

// A jump of one of many kinds and scales.
Time some_jump(RandomStream& random, uint64_t kinds, int scale, Time common) {
  const uint64_t kind = random.bits() % 8;
  if ((kinds >> kind & 1) == 0) return random.bits() >> scale;
  switch (kind) {
    case 0:
      return 0;
    case 1:
      return common;
    case 2:
      return 1;
    case 3:
      return random.bits() % 3;
    case 4:
      return random.bits() >> (random.bits() % 64);
    case 5:
      return kLongest;
    case 6:
      return (random.bits() >> scale) & ~Time{0xff};
    default:
      return common + random.bits() % 2;
  }
}

LEEBOARD_TEST(queue_random_interleavings) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    context = "seed " + std::to_string(seed);
    RandomStream random(seed, 1);
    Pair pair;
    const int phases = 1 + static_cast<int>(random.bits() % 8);
    for (int phase = 0; phase < phases; ++phase) {
      const uint64_t kinds = random.bits() & random.bits();
      const int scale = 8 + static_cast<int>(random.bits() % 48);
      const Time common = random.bits() >> scale;
      // Of 16 steps so many push: the queue grows, stays, shrinks or runs dry.
      const uint64_t pushes = random.bits() % 16;
      const uint64_t burst = random.bits() % 4 == 0 ? random.bits() % 400 : 1;
      const uint64_t steps = random.bits() % 1200;
      for (uint64_t i = 0; i < steps; ++i) {
        if (random.bits() % 16 < pushes) {
          const Time jump = some_jump(random, kinds, scale, common);
          const bool alike = random.bits() % 2 == 0;
          for (uint64_t k = 0; k < burst && pair.size() < 20000; ++k) {
            pair.push_after(alike ? jump : some_jump(random, kinds, scale, common));
          }
        } else if (pair.size() > 0) {
          pair.pop();
        }
        if (random.bits() % 4 == 0) pair.look();
      }
      if (random.bits() % 3 == 0) pair.drain();
    }
    pair.drain();
  }
}

LEEBOARD_TEST(queue_holds_like_the_standard_one) {
  for (int jumps = 0; jumps < kJumps; ++jumps) {
    for (const uint64_t pending : {1, 2, 31, 127, 128, 129, 1000, 20000}) {
      context = "jumps " + std::to_string(jumps) + ", pending " + std::to_string(pending);
      EventQueue queue;
      HeapQueue heap;
      StandardQueue standard;
      const auto kind = static_cast<Jumps>(jumps);
      const uint64_t wanted = hold(standard, pending, 20000, kind, 7).checksum;
      CHECK(hold(queue, pending, 20000, kind, 7).checksum == wanted);
      CHECK(hold(heap, pending, 20000, kind, 7).checksum == wanted);
    }
  }
}

// Ranks of one program: everybody at once, again and again, with a straggler in between.
LEEBOARD_TEST(queue_ties) {
  Pair pair;
  for (int round = 0; round < 20; ++round) {
    for (int i = 0; i < 3000; ++i) pair.push_after(1000);
    pair.push_after(999);
    pair.push_after(1001);
    for (int i = 0; i < 1500; ++i) pair.pop();
    for (int i = 0; i < 3000; ++i) {
      pair.push(pair.now());
      pair.pop();
    }
    for (int i = 0; i < 500; ++i) pair.push_after(i % 2 == 0 ? 1000 : 0);
    while (pair.size() > 200) pair.pop();
  }
  pair.drain();
}

LEEBOARD_TEST(queue_last_moments) {
  Pair pair;
  for (Time back = 3000; back > 0; --back) pair.push(kLast - back % 700);
  for (int i = 0; i < 1000; ++i) pair.pop();
  for (int i = 0; i < 1000; ++i) pair.push_after(kLongest);
  pair.drain();
  for (int i = 0; i < 1000; ++i) pair.push(kLast);
  pair.drain();
}

// A rung beside one whose last bucket would reach beyond the end of the parent's bucket.
LEEBOARD_TEST(queue_nested_clusters) {
  RandomStream random(3, 1);
  Pair pair;
  for (int round = 0; round < 8; ++round) {
    for (int i = 0; i < 4000; ++i) {
      const int depth = static_cast<int>(random.bits() % 6);
      pair.push_after((Time{1} << 9 * depth) + (random.bits() & ((Time{1} << 7 * depth) - 1)));
    }
    for (int i = 0; i < 3500; ++i) {
      pair.pop();
      if (i % 3 == 0) pair.push_after(random.bits() >> (20 + random.bits() % 44));
    }
  }
  pair.drain();
}

// What a queue occupies when `pending` events have been held for a while.
size_t bytes_of(uint64_t pending, uint64_t holds, Jumps jumps) {
  const size_t before = test::allocated();
  EventQueue queue;
  const JumpTable table(jumps, 5);
  const size_t own = test::allocated();
  for (uint64_t i = 0; i < pending; ++i) queue.push(table[i], i);
  for (uint64_t i = 0; i < holds; ++i) {
    const Event event = queue.pop();
    queue.push(later(event.time, table[i]), event.data);
  }
  const size_t held = test::allocated() - own;
  while (queue.size() > 10) queue.pop();
  for (uint64_t i = 0; i < 3 * pending; ++i) {
    const Event event = queue.pop();
    queue.push(later(event.time, table[i]), event.data);
  }
  // Few left: the ladder's memory has been given back.
  CHECK(test::allocated() - own <= (1 << 18));
  CHECK(own - before >= (1 << 16));
  return held;
}

LEEBOARD_TEST(queue_memory_follows_what_is_pending) {
  for (int jumps = 0; jumps < kJumps; ++jumps) {
    context = "jumps " + std::to_string(jumps);
    // Nothing piles up behind a present that never ends, nor in spent buckets.
    const size_t some = bytes_of(1000, 10000, static_cast<Jumps>(jumps));
    const size_t long_after = bytes_of(1000, 300000, static_cast<Jumps>(jumps));
    CHECK(long_after <= std::max<size_t>(2 * some, 1 << 17));
    // 24 bytes an event, and room to grow.
    const size_t many = bytes_of(100000, 100000, static_cast<Jumps>(jumps));
    CHECK(many <= 100000 * 24 * 3);
  }
}

LEEBOARD_TEST(queue_clear_starts_over) {
  EventQueue queue;
  for (uint64_t i = 0; i < 5000; ++i) queue.push(i * i % 4999, i);
  for (int i = 0; i < 100; ++i) queue.pop();
  queue.clear();
  CHECK(queue.empty());
  CHECK(queue.next_time() == kNever);
  queue.push(0, 42);
  const Event event = queue.pop();
  CHECK(event.time == 0);
  CHECK(event.sequence == 0);
  CHECK(event.data == 42);
}

}  // namespace
}  // namespace leeboard::sim

// One of many threads runs at a time, and says which is next.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <stdexcept>

#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <condition_variable>
#include <mutex>
#endif

namespace leeboard::sim {

struct Aborted : std::runtime_error {
  Aborted() : std::runtime_error("the simulation has been ended") {}
};

// What one thread waits for and another gives. Giving twice is giving once.
class Turn {
 public:
#ifdef __linux__
  // A hand-off among many threads costs half of what it takes with std::counting_semaphore, whose
  // waiters share their queues.
  void give() {
    if (state_.exchange(kGiven, std::memory_order_acq_rel) == kAsleep) call(FUTEX_WAKE_PRIVATE, 1);
  }
  void wait() {
    int32_t none = kNone;
    if (state_.compare_exchange_strong(none, kAsleep, std::memory_order_acq_rel)) {
      while (state_.load(std::memory_order_acquire) == kAsleep) call(FUTEX_WAIT_PRIVATE, kAsleep);
    }
    state_.store(kNone, std::memory_order_relaxed);
  }

 private:
  static constexpr int32_t kNone = 0, kGiven = 1, kAsleep = 2;

  void call(int what, int32_t value) {
    syscall(SYS_futex, &state_, what, value, nullptr, nullptr, 0);
  }

  std::atomic<int32_t> state_{kNone};
#else
  void give() {
    {
      const std::lock_guard lock(mutex_);
      given_ = true;
    }
    changed_.notify_one();
  }
  void wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return given_; });
    given_ = false;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool given_ = false;
#endif
};

class Baton {
 public:
  explicit Baton(uint32_t threads) : count_(threads), lines_(new Line[threads]) {}

  // Waits until somebody gives the baton to `thread`; throws Aborted once abort() has been called.
  void enter(uint32_t thread) {
    check();
    lines_[thread].turn.wait();
    check();
  }
  void leave(uint32_t to) { lines_[to].turn.give(); }
  // Both, in this order.
  void pass(uint32_t thread, uint32_t to) {
    check();
    if (thread == to) return;
    leave(to);
    enter(thread);
  }
  // Wakes all.
  void abort() {
    aborted_.store(true, std::memory_order_release);
    for (uint32_t thread = 0; thread < count_; ++thread) leave(thread);
  }
  void check() const {
    if (aborted_.load(std::memory_order_acquire)) throw Aborted();
  }

 private:
  struct alignas(64) Line {
    Turn turn;
  };

  uint32_t count_;
  std::unique_ptr<Line[]> lines_;
  std::atomic<bool> aborted_{false};
};

}  // namespace leeboard::sim

// One of many threads runs at a time, and says which is next.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <semaphore>
#include <stdexcept>

namespace leeboard::sim {

struct Aborted : std::runtime_error {
  Aborted() : std::runtime_error("the simulation has been ended") {}
};

class Baton {
 public:
  explicit Baton(uint32_t threads) : count_(threads), turns_(new Turn[threads]) {}

  // Waits until somebody gives the baton to `thread`; throws Aborted once abort() has been called.
  void enter(uint32_t thread) {
    check();
    turns_[thread].semaphore.acquire();
    check();
  }
  void leave(uint32_t to) { turns_[to].semaphore.release(); }
  // Both, in this order.
  void pass(uint32_t thread, uint32_t to) {
    check();
    if (thread == to) return;
    leave(to);
    enter(thread);
  }
  // Wakes all.
  void abort() {
    if (aborted_.exchange(true)) return;
    for (uint32_t thread = 0; thread < count_; ++thread) leave(thread);
  }
  bool aborted() const { return aborted_.load(std::memory_order_relaxed); }
  void check() const {
    if (aborted()) throw Aborted();
  }

 private:
  // Of a cache line, so that giving one does not wake the memory of another.
  struct alignas(64) Turn {
    std::counting_semaphore<1 << 20> semaphore{0};
  };

  uint32_t count_;
  std::unique_ptr<Turn[]> turns_;
  std::atomic<bool> aborted_{false};
};

}  // namespace leeboard::sim

// Several simulations at once: each belongs to one thread, and they share nothing.
#include <thread>
#include <vector>

#include "check.h"
#include "sim/hold.h"

namespace leeboard::sim {
namespace {

template <typename Work>
std::vector<uint64_t> on_threads(int count, Work work) {
  std::vector<uint64_t> results(count);
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back([&, i] { results[i] = work(i); });
  for (std::thread& thread : threads) thread.join();
  return results;
}

LEEBOARD_TEST(threads_hold_queues) {
  const auto work = [](int jumps) {
    EventQueue queue;
    return hold(queue, 3000, 20000, static_cast<Jumps>(jumps), 11).checksum;
  };
  const std::vector<uint64_t> together = on_threads(kJumps, work);
  for (int jumps = 0; jumps < kJumps; ++jumps) CHECK(together[jumps] == work(jumps));
}

}  // namespace
}  // namespace leeboard::sim

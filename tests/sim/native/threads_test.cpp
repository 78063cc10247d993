// Several simulations at once: each belongs to one thread, and they share nothing.
#include <thread>
#include <vector>

#include "check.h"
#include "parts.h"
#include "sim/engine.h"
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

// The same program and platform in every thread, with another seed in each.
LEEBOARD_TEST(threads_run_engines) {
  RandomStream random(9, 5);
  Platform platform = test::random_graph(12, 4, random);
  platform.protocol.eager_limit = 30'000;
  platform.protocol.jitter = 0.3;
  const Program program = test::random_exchange(12, 2000, random);
  for (const NetworkModel network : {NetworkModel::kFlow, NetworkModel::kAlphaBeta}) {
    const auto work = [&](int seed) {
      Options options;
      options.network = network;
      options.seed = static_cast<uint64_t>(seed);
      options.records = 1 << 20;
      options.bins = 32;
      const Outcome outcome = Engine(program, platform, options).run();
      CHECK(outcome.status == Status::kDone);
      return outcome.hash;
    };
    const std::vector<uint64_t> together = on_threads(4, work);
    for (int seed = 0; seed < 4; ++seed) CHECK(together[seed] == work(seed));
    CHECK(together[0] != together[1]);
  }
}

}  // namespace
}  // namespace leeboard::sim

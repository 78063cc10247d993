// Several simulations at once: each belongs to one thread, and they share nothing.
#include <thread>
#include <vector>

#include "check.h"
#include "parts.h"
#include "sim/baton.h"
#include "sim/hold.h"
#include "sim/live.h"

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

// A ring of messages, each rank's program written by a thread of its own.
LEEBOARD_TEST(threads_take_turns) {
  constexpr uint32_t kRanks = 16;
  Live live(kRanks, test::star(kRanks), Options{});
  Baton baton(kRanks);
  uint64_t turns = 0;
  const auto work = [&](uint32_t rank) {
    baton.enter(rank);
    for (int round = 0; round < 200; ++round) {
      const auto peer = [&](uint32_t step) { return static_cast<int32_t>((rank + step) % kRanks); };
      live.begin(rank, test::op(OpKind::kSend, peer(1), round, 100));
      live.wait(rank, live.begin(rank, test::op(OpKind::kRecv, peer(kRanks - 1), round, 100)));
      ++turns;
      baton.pass(rank, live.run(rank));
    }
    const uint32_t next = live.finish(rank);
    if (next != kNil) baton.leave(next);
  };
  std::vector<std::thread> threads;
  for (uint32_t rank = 0; rank < kRanks; ++rank) threads.emplace_back(work, rank);
  baton.leave(0);
  for (std::thread& thread : threads) thread.join();
  CHECK(turns == 200 * kRanks);
  const Outcome outcome = live.outcome();
  CHECK(outcome.status == Status::kDone);
  CHECK(outcome.messages == 200 * kRanks);
}

LEEBOARD_TEST(threads_are_all_woken) {
  Baton baton(8);
  std::atomic<int> woken{0};
  const auto work = [&](uint32_t thread) {
    try {
      baton.enter(thread);
      baton.pass(thread, (thread + 1) % 8);
    } catch (const Aborted&) {
      ++woken;
    }
  };
  std::vector<std::thread> threads;
  for (uint32_t thread = 0; thread < 8; ++thread) threads.emplace_back(work, thread);
  baton.leave(3);
  baton.abort();
  for (std::thread& thread : threads) thread.join();
  // One that had been given the baton before may have got by.
  CHECK(woken >= 7);
}

}  // namespace
}  // namespace leeboard::sim

// Whole runs: everything arrives, times are those of the arithmetic, and a rerun is the same run.
#include "sim/engine.h"

#include <string>

#include "check.h"
#include "parts.h"

namespace leeboard::sim {
namespace {

using test::add_rank;
using test::context;
using test::op;

Outcome run(const Program& program, const Platform& platform, NetworkModel network,
            uint64_t records = 0) {
  Options options;
  options.network = network;
  options.seed = 5;
  options.records = records;
  options.bins = records > 0 ? 16 : 0;
  return Engine(program, platform, options).run();
}

LEEBOARD_TEST(engine_random_exchanges) {
  for (uint64_t seed = 0; seed < 120; ++seed) {
    context = "seed " + std::to_string(seed);
    RandomStream random(seed, 4);
    const auto ranks = 2 + static_cast<uint32_t>(random.bits() % 10);
    Platform platform = test::random_graph(ranks, 3, random);
    if (seed % 2 == 0) platform.protocol.eager_limit = 20'000;
    if (seed % 3 == 0) platform.protocol.handshake = Handshake::kRequest;
    if (seed % 4 == 0) platform.protocol.jitter = 0.2;
    if (seed % 4 == 1) platform.protocol.loss = 0.01;
    if (seed % 5 == 0) platform.protocol.cross_traffic = 0.09;
    const Program program = test::random_exchange(ranks, 200, random);
    for (const NetworkModel network : {NetworkModel::kFlow, NetworkModel::kAlphaBeta}) {
      const Outcome once = run(program, platform, network);
      CHECK(once.status == Status::kDone);
      CHECK(once.messages == 200);
      CHECK(once.unmatched == 0);
      uint64_t sent = 0, received = 0;
      for (const RankTotals& rank : once.ranks) {
        sent += rank.sent;
        received += rank.received;
        CHECK(rank.finish <= once.makespan);
      }
      CHECK(sent == received);
      // Watching changes nothing.
      const Outcome again = run(program, platform, network, 1 << 20);
      CHECK(again.hash == once.hash);
      CHECK(again.makespan == once.makespan);
      CHECK(again.events == once.events);
    }
  }
}

LEEBOARD_TEST(engine_ring_takes_what_the_arithmetic_says) {
  for (const int32_t ranks : {2, 3, 8, 65}) {
    context = std::to_string(ranks) + " ranks";
    Program program;
    for (int32_t me = 0; me < ranks; ++me) {
      // 2 us and 100 us a message; the op after the loop's last is its end.
      add_rank(program, {op(OpKind::kLoop, 0, 0, 50, 5 * static_cast<uint64_t>(me) + 4),
                         op(OpKind::kSend, (me + 1) % ranks, 7, 100'000, 0, 0),
                         op(OpKind::kRecv, (me + ranks - 1) % ranks, 7, kUnknown),
                         op(OpKind::kWait, 0, 0, 0, 0, 0),
                         op(OpKind::kLoopEnd, 0, 0, 0, 5 * static_cast<uint64_t>(me))});
    }
    const Platform platform = test::star(static_cast<uint32_t>(ranks));
    for (const NetworkModel network : {NetworkModel::kFlow, NetworkModel::kAlphaBeta}) {
      const Outcome outcome = run(program, platform, network);
      CHECK(outcome.status == Status::kDone);
      CHECK(outcome.messages == 50u * static_cast<uint32_t>(ranks));
      CHECK(outcome.makespan >= 50 * Time{102'000'000});
      CHECK(outcome.makespan <= 50 * (Time{102'000'000} + 1));
    }
  }
}

LEEBOARD_TEST(engine_deadlock_is_found) {
  Program program;
  add_rank(program, {op(OpKind::kRecv, 1, 0, kUnknown), op(OpKind::kSend, 1, 0, 10)});
  add_rank(program, {op(OpKind::kRecv, 0, 0, kUnknown), op(OpKind::kSend, 0, 0, 10)});
  add_rank(program, {op(OpKind::kDelay, 0, 0, 1'000'000)});
  const Outcome outcome = run(program, test::star(3), NetworkModel::kFlow);
  CHECK(outcome.status == Status::kDeadlock);
  CHECK(outcome.blocked.size() == 2);
  CHECK(outcome.blocked[0].rank == 0);
  CHECK(outcome.blocked[1].rank == 1);
}

}  // namespace
}  // namespace leeboard::sim

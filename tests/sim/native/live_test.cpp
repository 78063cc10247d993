// Live runs without Python: what grows stays where it is, and comes to the same.
#include "sim/live.h"

#include <numeric>
#include <thread>
#include <vector>

#include "check.h"
#include "parts.h"
#include "sim/baton.h"

namespace leeboard::sim {
namespace {

// What each rank appends at a time.
using Batches = std::vector<std::vector<std::vector<Op>>>;

Batches batches_of(const Program& program, RandomStream& random) {
  Batches batches(program.ranks());
  for (uint32_t rank = 0; rank < program.ranks(); ++rank) {
    for (uint64_t i = program.begin[rank]; i < program.end[rank];) {
      const uint64_t size = std::min<uint64_t>(random.bits() % 9, program.end[rank] - i);
      batches[rank].emplace_back(program.ops.begin() + static_cast<int64_t>(i),
                                 program.ops.begin() + static_cast<int64_t>(i + size));
      i += size;
    }
  }
  return batches;
}

// One batch; then the rank whose turn it is, or kNil.
uint32_t step(Live& live, const Batches& batches, std::vector<size_t>& done, uint32_t rank) {
  if (done[rank] == batches[rank].size()) return live.finish(rank);
  for (const Op& op : batches[rank][done[rank]]) live.add(rank, op);
  ++done[rank];
  return done[rank] % 5 == 0 ? live.look(rank) : live.run(rank);
}

Options options_of(NetworkModel network) {
  Options options;
  options.network = network;
  options.seed = 4;
  options.records = 1 << 20;
  options.bins = 32;
  return options;
}

void check_replay(Live& live, const Platform& platform, NetworkModel network) {
  const Program recorded = live.program();
  const Outcome outcome = live.outcome();
  Engine engine(recorded, platform, options_of(network));
  const Outcome replayed = engine.run();
  CHECK(outcome.status == Status::kDone);
  CHECK(outcome.hash == replayed.hash);
  CHECK(outcome.events == replayed.events);
  CHECK(outcome.makespan == replayed.makespan);
  const auto& records = live.engine().timeline().records();
  CHECK(records.size() == engine.timeline().records().size());
  for (size_t i = 0; i < records.size(); ++i) {
    CHECK(records[i].op == engine.timeline().records()[i].op);
    CHECK(records[i].end == engine.timeline().records()[i].end);
  }
}

LEEBOARD_TEST(live_runs_are_their_replays) {
  RandomStream random(2, 9);
  for (int round = 0; round < 6; ++round) {
    Platform platform = test::random_graph(8, 3, random);
    platform.protocol.eager_limit = 30'000;
    const Program program = test::random_exchange(8, 800, random);
    const Batches batches = batches_of(program, random);
    for (const NetworkModel network : {NetworkModel::kFlow, NetworkModel::kAlphaBeta}) {
      Live live(8, platform, options_of(network));
      std::vector<size_t> done(8);
      for (uint32_t rank = 0; rank != kNil;) rank = step(live, batches, done, rank);
      check_replay(live, platform, network);
    }
  }
}

LEEBOARD_TEST(live_collectives_grow_groups_and_tables) {
  const Platform platform = test::star(6);
  Live live(6, platform, options_of(NetworkModel::kFlow));
  std::vector<int> calls(6);
  for (uint32_t rank = 0; rank != kNil;) {
    if (calls[rank] == 40) {
      rank = live.finish(rank);
      continue;
    }
    const auto name = std::to_string(calls[rank] / 4);
    const uint32_t group = live.group(name, {5, 1, 0, 3, 2, 4}, rank);
    std::vector<uint64_t> sends(6), recvs(6);
    for (uint32_t k = 0; k < 6; ++k) {
      sends[k] = 1000 * rank + k;
      recvs[k] = 1000 * static_cast<uint64_t>(std::vector<int>{5, 1, 0, 3, 2, 4}[k]);
    }
    const uint32_t me = std::vector<uint32_t>{2, 1, 4, 3, 5, 0}[rank];
    for (uint64_t& bytes : recvs) bytes += me;
    const int32_t slot = live.all_to_all(rank, group, sends, recvs, 0, calls[rank] % 2 == 0);
    if (slot != kNoSlot) live.wait(rank, slot);
    ++calls[rank];
    rank = live.run(rank);
  }
  check_replay(live, platform, NetworkModel::kFlow);
}

}  // namespace
}  // namespace leeboard::sim

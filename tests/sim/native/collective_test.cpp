// Every collective by every algorithm that it has, as schedules and as runs.
#include "sim/collective.h"

#include <map>
#include <string>
#include <utility>

#include "check.h"
#include "parts.h"
#include "sim/engine.h"

namespace leeboard::sim {
namespace {

using test::add_rank;
using test::context;

template <typename Each>
void each_pairing(Each each) {
  for (uint16_t c = 0; c < kCollectives; ++c) {
    for (uint32_t a = 1; a < kAlgorithms; ++a) {
      const auto collective = static_cast<Collective>(c);
      const auto algorithm = static_cast<Algorithm>(a);
      if (supports(collective, algorithm)) each(collective, algorithm);
    }
  }
}

// What is sent from one rank to another is received there, message by message.
LEEBOARD_TEST(collective_schedules_match) {
  const std::vector<uint32_t> islands = {0, 0, 1, 1, 1, 2, 0, 3, 3, 2, 1, 0, 4};
  each_pairing([&](Collective collective, Algorithm algorithm) {
    for (uint32_t ranks = 1; ranks <= 13; ++ranks) {
      for (const uint64_t bytes : {0, 1, 12, 1'000'003}) {
        const uint32_t root = ranks / 2;
        context = std::string(name_of(collective)) + ", " + name_of(algorithm) + ", " +
                  std::to_string(ranks) + " ranks, " + std::to_string(bytes) + " bytes";
        Schedule schedule{.collective = collective,
                          .algorithm = algorithm,
                          .ranks = ranks,
                          .root = root,
                          .bytes = bytes,
                          .sizes = {}};
        const Islands layout{std::span<const uint32_t>(islands).first(ranks), ranks};
        if (algorithm == Algorithm::kHierarchical) schedule.islands = &layout;
        using Ends = std::pair<uint32_t, uint32_t>;
        std::map<Ends, std::vector<uint64_t>> sent, received;
        Round round;
        for (uint32_t rank = 0; rank < ranks; ++rank) {
          for (uint32_t k = 0; k < schedule.rounds(rank); ++k) {
            schedule.round(rank, k, round);
            for (const Transfer& t : round.sends) {
              CHECK(t.peer < ranks && t.peer != rank);
              sent[{rank, t.peer}].push_back(t.bytes);
            }
            for (const Transfer& t : round.recvs) {
              CHECK(t.peer < ranks && t.peer != rank);
              received[{t.peer, rank}].push_back(t.bytes);
            }
          }
        }
        CHECK(sent == received);
        CHECK(ranks == 1 || bytes == 0 || !sent.empty());
      }
    }
  });
}

LEEBOARD_TEST(collective_runs_end_together) {
  each_pairing([&](Collective collective, Algorithm algorithm) {
    for (const uint32_t ranks : {1u, 2u, 5u, 8u}) {
      context = std::string(name_of(collective)) + ", " + name_of(algorithm) + ", " +
                std::to_string(ranks) + " ranks";
      Platform platform = test::star(ranks);
      platform.island.assign(ranks, 0);
      for (uint32_t i = ranks / 2; i < ranks; ++i) platform.island[i] = 1;
      Op op = test::op(OpKind::kCollective, static_cast<int32_t>(ranks - 1), 0, 50'000,
                       static_cast<uint64_t>(algorithm));
      op.flags = static_cast<uint16_t>(collective);
      Program program;
      // Ranks come one after the other, three times.
      for (uint32_t rank = 0; rank < ranks; ++rank) {
        add_rank(program,
                 {test::op(OpKind::kDelay, 0, 0, rank * uint64_t{10'000'000}), op, op, op});
      }
      for (const uint64_t eager_limit : {uint64_t{0}, UINT64_MAX}) {
        platform.protocol.eager_limit = eager_limit;
        for (const NetworkModel network : {NetworkModel::kFlow, NetworkModel::kAlphaBeta}) {
          Options options;
          options.network = network;
          const Outcome outcome = Engine(program, platform, options).run();
          CHECK(outcome.status == Status::kDone);
          CHECK(outcome.unmatched == 0);
          uint64_t sent = 0, received = 0;
          for (const RankTotals& totals : outcome.ranks) {
            sent += totals.sent;
            received += totals.received;
          }
          CHECK(sent == received);
          CHECK(ranks == 1 || outcome.messages >= 3 * (uint64_t{ranks} - 1));
        }
      }
    }
  });
}

}  // namespace
}  // namespace leeboard::sim

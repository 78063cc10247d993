// Schedules of collectives, for tests and for who wants to look at them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings.h"
#include "sim/collective.h"

namespace leeboard {
namespace {

using namespace sim;
using Messages = std::vector<std::pair<uint32_t, uint64_t>>;

Messages messages(const std::vector<Transfer>& transfers) {
  Messages list;
  for (const Transfer& transfer : transfers) list.emplace_back(transfer.peer, transfer.bytes);
  return list;
}

}  // namespace

void bind_sim_collective(py::module_& module) {
  module.def(
      "sim_collectives",
      [] {
        std::vector<std::string> names;
        for (uint16_t i = 0; i < kCollectives; ++i) {
          names.emplace_back(name_of(static_cast<Collective>(i)));
        }
        return names;
      },
      "Names of collectives, by number.");
  module.def(
      "sim_algorithms",
      [] {
        std::vector<std::string> names;
        for (uint32_t i = 0; i < kAlgorithms; ++i) {
          names.emplace_back(name_of(static_cast<Algorithm>(i)));
        }
        return names;
      },
      "Names of collectives' algorithms, by number.");
  module.def(
      "sim_supports",
      [](uint16_t collective, uint32_t algorithm) {
        return supports(static_cast<Collective>(collective), static_cast<Algorithm>(algorithm));
      },
      py::arg("collective"), py::arg("algorithm"), "Whether a collective has an algorithm.");
  module.def(
      "sim_rounds",
      [](uint16_t collective, uint32_t algorithm, uint32_t ranks, uint32_t root, uint64_t bytes,
         const std::vector<uint32_t>& islands, const std::vector<uint64_t>& sizes) {
        Schedule schedule{static_cast<Collective>(collective),
                          static_cast<Algorithm>(algorithm),
                          ranks,
                          root,
                          bytes,
                          sizes};
        if (!supports(schedule.collective, schedule.algorithm)) {
          throw py::value_error("algorithm: " + std::to_string(algorithm) + " is none of " +
                                name_of(schedule.collective));
        }
        if (ranks == 0 || root >= ranks) {
          throw py::value_error("root: got " + std::to_string(root) + " of " +
                                std::to_string(ranks) + " ranks");
        }
        if (!islands.empty() && islands.size() != ranks) {
          throw py::value_error("islands: got " + std::to_string(islands.size()) + ", expected " +
                                std::to_string(ranks));
        }
        if (!sizes.empty() && sizes.size() != uint64_t{ranks} * ranks) {
          throw py::value_error("sizes: got " + std::to_string(sizes.size()) + ", expected " +
                                std::to_string(uint64_t{ranks} * ranks));
        }
        const Islands layout(islands, ranks);
        schedule.islands = &layout;
        std::vector<std::vector<std::tuple<Messages, Messages, uint64_t>>> all(ranks);
        Round round;
        for (uint32_t rank = 0; rank < ranks; ++rank) {
          const uint32_t rounds = schedule.rounds(rank);
          for (uint32_t k = 0; k < rounds; ++k) {
            schedule.round(rank, k, round);
            all[rank].emplace_back(messages(round.sends), messages(round.recvs), round.reduced);
          }
        }
        return std::make_pair(all, schedule.depth());
      },
      py::arg("collective"), py::arg("algorithm"), py::arg("ranks"), py::arg("root"),
      py::arg("bytes"), py::arg("islands") = std::vector<uint32_t>{},
      py::arg("sizes") = std::vector<uint64_t>{},
      "Of each rank, its rounds: (sends, receives, bytes reduced), a message as (peer, bytes); and "
      "how many rounds are under way at once.");
}

}  // namespace leeboard

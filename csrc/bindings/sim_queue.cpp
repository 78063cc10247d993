#include <pybind11/stl.h>

#include <string>
#include <utility>

#include "bindings.h"
#include "sim/hold.h"

namespace leeboard {
namespace {

sim::Jumps jumps_of(const std::string& name) {
  constexpr const char* kNames[sim::kJumps] = {"exponential", "bimodal", "ties", "now", "far"};
  for (int i = 0; i < sim::kJumps; ++i) {
    if (name == kNames[i]) return static_cast<sim::Jumps>(i);
  }
  throw py::value_error("distribution: got '" + name +
                        "'; expected exponential, bimodal, ties, now or far");
}

template <typename Queue>
std::pair<double, uint64_t> run(uint64_t pending, uint64_t holds, sim::Jumps jumps, uint64_t seed) {
  const py::gil_scoped_release release;
  Queue queue;
  const sim::HoldResult result = sim::hold(queue, pending, holds, jumps, seed);
  return {result.nanoseconds, result.checksum};
}

std::pair<double, uint64_t> sim_hold(const std::string& structure, uint64_t pending, uint64_t holds,
                                     const std::string& distribution, uint64_t seed) {
  if (pending == 0) throw py::value_error("pending: got 0; expected 1 or more");
  if (holds == 0) throw py::value_error("holds: got 0; expected 1 or more");
  const sim::Jumps jumps = jumps_of(distribution);
  if (structure == "queue") return run<sim::EventQueue>(pending, holds, jumps, seed);
  if (structure == "heap") return run<sim::HeapQueue>(pending, holds, jumps, seed);
  if (structure == "standard") return run<sim::StandardQueue>(pending, holds, jumps, seed);
  throw py::value_error("structure: got '" + structure + "'; expected queue, heap or standard");
}

}  // namespace

void bind_sim_queue(py::module_& module) {
  module.def("sim_hold", &sim_hold, py::arg("structure"), py::arg("pending"), py::arg("holds"),
             py::arg("distribution"), py::arg("seed"),
             "Runs the hold model on an event queue: (nanoseconds a hold, checksum of what was "
             "popped, in order).");
}

}  // namespace leeboard

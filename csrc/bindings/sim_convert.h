// From Python's dicts of arrays to the simulator's programs and platforms, with everything checked:
// what passes cannot lead the engine out of bounds.
#pragma once

#include <pybind11/pybind11.h>

#include "sim/engine.h"
#include "sim/platform.h"
#include "sim/program.h"

namespace leeboard {

inline constexpr uint32_t kMostDevices = 1u << 28;

// Both raise ValueError (py::value_error) that names the key, what was given and what is expected.
sim::Program program_of(const pybind11::dict& dict);
sim::Platform platform_of(const pybind11::dict& dict);
// How to run; `interrupted` is not set.
sim::Options options_of(const pybind11::dict& dict);
// What a run has come to, as sim_run returns it.
pybind11::dict result_of(const sim::Outcome& outcome, const sim::Engine& engine,
                         const sim::Platform& platform, size_t queues);

}  // namespace leeboard

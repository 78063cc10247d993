// leeboard._C's way into the simulator: a program and a platform in, a dict of arrays out.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdio>

#include "bindings.h"
#include "sim/engine.h"
#include "sim_convert.h"

namespace py = pybind11;

namespace leeboard {
namespace {

using sim::Engine;
using sim::Outcome;
using sim::Record;
using sim::Time;

template <class T, class Range, class Get>
py::array_t<T> column(const Range& range, Get get) {
  py::array_t<T> out(static_cast<py::ssize_t>(range.size()));
  T* at = out.mutable_data();
  for (const auto& item : range) *at++ = get(item);
  return out;
}

py::array_t<Record> records_of(const sim::Timeline& timeline) {
  const auto& records = timeline.records();
  py::array_t<Record> out(static_cast<py::ssize_t>(records.size()));
  if (!records.empty()) std::copy(records.begin(), records.end(), out.mutable_data());
  return out;
}

py::dict ranks_of(const Outcome& outcome) {
  using Totals = sim::RankTotals;
  py::dict ranks;
  const auto add = [&](const char* name, auto get) {
    ranks[name] = column<uint64_t>(outcome.ranks, get);
  };
  add("finish", [](const Totals& t) { return t.finish; });
  add("compute", [](const Totals& t) { return t.compute; });
  add("communication", [](const Totals& t) { return t.communication; });
  add("sent", [](const Totals& t) { return t.sent; });
  add("received", [](const Totals& t) { return t.received; });
  add("peak_memory", [](const Totals& t) { return t.peak_memory; });
  return ranks;
}

py::list requests_of(const Outcome& outcome, size_t queues) {
  std::vector<std::vector<sim::Request>> by_queue(queues);
  for (const sim::Request& request : outcome.requests) {
    by_queue[request.queue].push_back(request);
  }
  py::list out;
  for (auto& requests : by_queue) {
    std::stable_sort(requests.begin(), requests.end(),
                     [](const auto& x, const auto& y) { return x.arrived < y.arrived; });
    py::dict columns;
    columns["arrived"] = column<uint64_t>(requests, [](const auto& r) { return r.arrived; });
    columns["taken"] = column<uint64_t>(requests, [](const auto& r) { return r.taken; });
    columns["done"] = column<uint64_t>(requests, [](const auto& r) { return r.done; });
    out.append(columns);
  }
  return out;
}

// What each link carried, each way: bytes, busy time, and its share of the bandwidth over time. All
// empty where links were not watched.
void add_links(py::dict& result, const sim::Usage* usage, const sim::Platform& platform) {
  const py::ssize_t resources = usage == nullptr ? 0 : static_cast<py::ssize_t>(usage->resources());
  const py::ssize_t bins = usage == nullptr ? 0 : static_cast<py::ssize_t>(usage->bins());
  const double width = usage == nullptr ? 0.0 : sim::to_seconds(usage->bin_width());
  py::array_t<double> bytes(resources);
  py::array_t<uint64_t> busy(resources);
  py::array_t<float> utilisation({resources, bins});
  for (py::ssize_t i = 0; i < resources; ++i) {
    const auto id = static_cast<sim::ResourceId>(i);
    bytes.mutable_at(i) = usage->bytes(id);
    busy.mutable_at(i) = usage->busy(id);
    // A link that carried nothing has no bins.
    const auto bin = usage->bytes_by_bin(id);
    const double most = platform.links[id / 2].bandwidth * width;
    for (py::ssize_t j = 0; j < bins; ++j) {
      utilisation.mutable_at(i, j) = bin.empty() ? 0.0F : static_cast<float>(bin[j] / most);
    }
  }
  py::dict links;
  links["bytes"] = bytes;
  links["busy"] = busy;
  result["links"] = links;
  result["utilisation"] = utilisation;
  result["bin_ps"] = usage == nullptr ? Time{0} : usage->bin_width();
}

py::list blocked_of(const Outcome& outcome) {
  py::list out;
  for (const sim::Blocked& blocked : outcome.blocked) {
    py::dict entry;
    entry["rank"] = blocked.rank;
    entry["stream"] = blocked.stream;
    entry["op"] = blocked.op;
    entry["since"] = blocked.since;
    entry["number"] = blocked.number;
    entry["missing"] = blocked.missing;
    out.append(entry);
  }
  return out;
}

const char* status_name(sim::Status status) {
  static constexpr std::array names{"done", "deadlock", "mismatch", "error"};
  return names[static_cast<size_t>(status)];
}

}  // namespace

py::dict result_of(const Outcome& outcome, const Engine& engine, const sim::Platform& platform,
                   size_t queues) {
  std::array<char, 17> hash{};
  std::snprintf(hash.data(), hash.size(), "%016llx", static_cast<unsigned long long>(outcome.hash));
  py::dict result;
  result["status"] = status_name(outcome.status);
  result["message"] = outcome.message;
  result["makespan"] = outcome.makespan;
  result["events"] = outcome.events;
  result["messages"] = outcome.messages;
  result["hash"] = hash.data();
  result["unmatched"] = outcome.unmatched;
  result["ranks"] = ranks_of(outcome);
  add_links(result, engine.usage(), platform);
  result["records"] = records_of(engine.timeline());
  result["records_dropped"] = engine.timeline().dropped();
  result["requests"] = requests_of(outcome, queues);
  result["blocked"] = blocked_of(outcome);
  result["failed"] = outcome.failed;
  py::list out_of_memory;
  for (const sim::OutOfMemory& o : outcome.out_of_memory) {
    out_of_memory.append(py::make_tuple(o.rank, o.at, o.in_use, o.limit, o.requested));
  }
  result["out_of_memory"] = out_of_memory;
  py::dict marks;
  marks["rank"] = column<uint32_t>(outcome.marks, [](const sim::Mark& m) { return m.rank; });
  marks["name"] = column<uint32_t>(outcome.marks, [](const sim::Mark& m) { return m.name; });
  marks["at"] = column<uint64_t>(outcome.marks, [](const sim::Mark& m) { return m.at; });
  result["marks"] = marks;
  return result;
}

namespace {

template <class T>
T option(const py::dict& options, const char* name) {
  if (!options.contains(name)) {
    throw py::value_error(std::string("options: ") + name + " is missing");
  }
  return options[name].cast<T>();
}

}  // namespace

sim::Options options_of(const py::dict& given) {
  sim::Options options;
  options.network = option<std::string>(given, "network") == "flow" ? sim::NetworkModel::kFlow
                                                                    : sim::NetworkModel::kAlphaBeta;
  options.seed = option<uint64_t>(given, "seed");
  options.records = std::min<uint64_t>(option<uint64_t>(given, "records"), sim::kNoRecord - 1);
  options.bins = option<uint32_t>(given, "bins");
  if (given.contains("marked")) options.marked = given["marked"].cast<std::vector<uint32_t>>();
  return options;
}

namespace {

py::dict run(const sim::Program& program, const py::dict& platform_dict, const py::dict& given) {
  const sim::Platform platform = platform_of(platform_dict);
  sim::Options options = options_of(given);
  options.interrupted = [] {
    const py::gil_scoped_acquire gil;
    return PyErr_CheckSignals() != 0;
  };
  std::unique_ptr<Engine> engine;
  Outcome outcome;
  try {
    const py::gil_scoped_release release;
    engine = std::make_unique<Engine>(program, platform, std::move(options));
    outcome = engine->run();
  } catch (const sim::Interrupted&) {
    // The signal's own exception is set.
    throw py::error_already_set();
  } catch (const std::runtime_error& error) {
    throw py::value_error(error.what());
  }
  return result_of(outcome, *engine, platform, program.queues.size());
}

}  // namespace

void bind_sim(py::module_& module) {
  PYBIND11_NUMPY_DTYPE(Record, start, end, bytes, ideal, prev, rank, peer, op, tag, kind, stream,
                       flags);
  PYBIND11_NUMPY_DTYPE(sim::Op, kind, stream, flags, peer, tag, slot, a, b);
  py::class_<sim::Program>(module, "SimProgram", "A program, checked and ready to run many times.")
      .def(py::init([](const py::dict& program) { return program_of(program); }),
           py::arg("program"))
      .def_property_readonly("ranks", &sim::Program::ranks);
  module.def("sim_run", &run, py::arg("program"), py::arg("platform"), py::arg("options"),
             "Runs a program on a platform; the GIL is released meanwhile. See leeboard.sim.run.");
}

}  // namespace leeboard

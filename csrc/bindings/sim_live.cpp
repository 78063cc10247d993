// leeboard._C.SimLive: a simulation whose ranks are threads of Python that take turns.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>
#include <mutex>

#include "bindings.h"
#include "sim/baton.h"
#include "sim/live.h"
#include "sim_convert.h"

namespace py = pybind11;

namespace leeboard {
namespace {

using sim::kNil;
using sim::kNoSlot;
using sim::Op;
using sim::OpKind;
using sim::Time;

template <class T>
py::array_t<T> array(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

class SimLive {
 public:
  SimLive(uint32_t ranks, const py::dict& platform, const py::dict& options)
      : live_(ranks, platform_of(platform), watched(options_of(options))), baton_(ranks) {}

  sim::Live& live() { return live_; }

  void delay(uint32_t rank, Time ps) { add(rank, OpKind::kDelay, ps); }
  void sleep(uint32_t rank, Time ps) { add(rank, OpKind::kSleep, ps); }
  void compute(uint32_t rank, uint64_t flops, uint64_t bytes, uint16_t dtype) {
    live_.add(rank, {OpKind::kCompute, 0, dtype, 0, 0, kNoSlot, flops, bytes});
  }
  void mark(uint32_t rank, uint64_t name) { add(rank, OpKind::kMark, name); }
  void alloc(uint32_t rank, uint64_t bytes) { add(rank, OpKind::kAlloc, bytes); }
  void free(uint32_t rank, uint64_t bytes) { add(rank, OpKind::kFree, bytes); }

  int32_t isend(uint32_t rank, int32_t to, int32_t tag, uint64_t bytes) {
    return live_.begin(rank, {OpKind::kSend, 0, 0, to, tag, kNoSlot, bytes, 0});
  }
  int32_t irecv(uint32_t rank, int32_t source, int32_t tag, uint64_t bytes) {
    return live_.begin(rank, {OpKind::kRecv, 0, 0, source, tag, kNoSlot, bytes, 0});
  }
  int32_t collective(uint32_t rank, int32_t group, uint16_t which, uint64_t bytes, int32_t root,
                     uint32_t algorithm, bool blocking) {
    return live_.collective(
        rank, {OpKind::kCollective, 0, which, std::max(root, 0), group, kNoSlot, bytes, algorithm},
        blocking);
  }

  int64_t run(uint32_t rank) { return turn(&sim::Live::run, rank); }
  int64_t look(uint32_t rank) { return turn(&sim::Live::look, rank); }
  int64_t park(uint32_t rank) { return turn(&sim::Live::park, rank); }
  int64_t finish(uint32_t rank) { return turn(&sim::Live::finish, rank); }
  void interrupt() { interrupted_.store(true, std::memory_order_relaxed); }

  void enter(uint32_t rank) { baton_.enter(known(rank)); }
  void pass(uint32_t rank, uint32_t to) { baton_.pass(known(rank), known(to)); }
  void leave(int64_t to) {
    if (to >= 0) baton_.leave(known(static_cast<uint32_t>(std::min<int64_t>(to, kNil))));
  }
  void abort() {
    interrupt();
    baton_.abort();
  }

  py::dict outcome() {
    if (asked_) throw std::runtime_error("outcome: it has been asked for before");
    asked_ = true;
    const std::lock_guard lock(engine_);
    const sim::Outcome outcome = live_.outcome();
    py::dict result = result_of(outcome, live_.engine(), live_.platform(), 0);
    const auto blocked = result["blocked"].cast<py::list>();
    for (size_t i = 0; i < outcome.blocked.size(); ++i) {
      blocked[i]["parked"] = live_.parked(outcome.blocked[i].rank);
    }
    return result;
  }

  py::dict program() const {
    const std::lock_guard lock(engine_);
    const sim::Program program = live_.program();
    py::dict columns;
    columns["ops"] = array(program.ops);
    columns["begin"] = array(program.begin);
    columns["end"] = array(program.end);
    columns["group_offsets"] = array(program.group_offsets);
    columns["group_members"] = array(program.group_members);
    columns["size_offsets"] = array(program.size_offsets);
    columns["sizes"] = array(program.sizes);
    columns["queues"] = py::list();
    return columns;
  }

 private:
  sim::Options watched(sim::Options options) {
    options.interrupted = [this] { return interrupted_.load(std::memory_order_relaxed); };
    return options;
  }
  void add(uint32_t rank, OpKind kind, uint64_t a) {
    live_.add(rank, {kind, 0, 0, 0, 0, kNoSlot, a, 0});
  }
  uint32_t known(uint32_t rank) const {
    if (rank >= live_.ranks()) {
      throw py::value_error("rank: got " + std::to_string(rank) + ", expected less than " +
                            std::to_string(live_.ranks()));
    }
    return rank;
  }
  int64_t turn(uint32_t (sim::Live::*go)(uint32_t), uint32_t rank) {
    baton_.check();
    const std::lock_guard lock(engine_);
    const uint32_t next = (live_.*go)(rank);
    return next == kNil ? -1 : int64_t{next};
  }

  // Before live_, whose engine asks for it.
  std::atomic<bool> interrupted_{false};
  sim::Live live_;
  sim::Baton baton_;
  // A thread that ends the run may ask for its outcome while a rank's is still in the engine, where
  // it needs no GIL.
  mutable std::mutex engine_;
  bool asked_ = false;
};

}  // namespace

void bind_sim_live(py::module_& module) {
  // No `except Exception` of a rank's program may hold it up.
  py::register_exception<sim::Aborted>(module, "SimAborted", PyExc_BaseException);
  using Free = py::call_guard<py::gil_scoped_release>;
  py::class_<SimLive>(module, "SimLive",
                      "A simulation whose ranks' programs are written while it runs; see "
                      "leeboard.sim.distributed.")
      .def(py::init([](uint32_t ranks, const py::dict& platform, const py::dict& options) {
             if (ranks == 0 || ranks > kMostDevices) {
               throw py::value_error("ranks: got " + std::to_string(ranks));
             }
             try {
               return std::make_unique<SimLive>(ranks, platform, options);
             } catch (const std::runtime_error& error) {
               // They do not fit together.
               throw py::value_error(error.what());
             }
           }),
           py::arg("ranks"), py::arg("platform"), py::arg("options"))
      .def("delay", &SimLive::delay, py::arg("rank"), py::arg("ps"))
      .def("sleep", &SimLive::sleep, py::arg("rank"), py::arg("ps"))
      .def("compute", &SimLive::compute, py::arg("rank"), py::arg("flops"), py::arg("bytes"),
           py::arg("dtype") = 0)
      .def("mark", &SimLive::mark, py::arg("rank"), py::arg("name"))
      .def("alloc", &SimLive::alloc, py::arg("rank"), py::arg("bytes"))
      .def("free", &SimLive::free, py::arg("rank"), py::arg("bytes"))
      .def("isend", &SimLive::isend, py::arg("rank"), py::arg("to"), py::arg("tag"),
           py::arg("bytes"))
      .def("irecv", &SimLive::irecv, py::arg("rank"), py::arg("source"), py::arg("tag"),
           py::arg("bytes"))
      .def("collective", &SimLive::collective, py::arg("rank"), py::arg("group"), py::arg("which"),
           py::arg("bytes"), py::arg("root") = -1, py::arg("algorithm") = 0,
           py::arg("blocking") = false)
      .def(
          "all_to_all",
          [](SimLive& self, uint32_t rank, uint32_t group, const std::vector<uint64_t>& sends,
             const std::vector<uint64_t>& recvs, uint32_t algorithm, bool blocking) {
            return self.live().all_to_all(rank, group, sends, recvs, algorithm, blocking);
          },
          py::arg("rank"), py::arg("group"), py::arg("sends"), py::arg("recvs"),
          py::arg("algorithm") = 0, py::arg("blocking") = false)
      .def(
          "wait", [](SimLive& self, uint32_t rank, int32_t slot) { self.live().wait(rank, slot); },
          py::arg("rank"), py::arg("slot"))
      .def(
          "group",
          [](SimLive& self, const std::string& name, const std::vector<int32_t>& members,
             int64_t rank) {
            return self.live().group(name, members, rank < 0 ? kNil : static_cast<uint32_t>(rank));
          },
          py::arg("name"), py::arg("members"), py::arg("rank") = -1)
      .def("run", &SimLive::run, py::arg("rank"), Free())
      .def("look", &SimLive::look, py::arg("rank"), Free())
      .def("park", &SimLive::park, py::arg("rank"), Free())
      .def("finish", &SimLive::finish, py::arg("rank"), Free())
      .def(
          "unpark", [](SimLive& self, uint32_t rank, Time at) { self.live().unpark(rank, at); },
          py::arg("rank"), py::arg("at"))
      .def("interrupt", &SimLive::interrupt)
      .def(
          "clock", [](SimLive& self, uint32_t rank) { return self.live().clock(rank); },
          py::arg("rank"))
      .def(
          "place", [](SimLive& self, uint32_t rank) { return self.live().place(rank); },
          py::arg("rank"))
      .def(
          "done",
          [](SimLive& self, uint32_t rank, int32_t slot) { return self.live().done(rank, slot); },
          py::arg("rank"), py::arg("slot"))
      .def(
          "met",
          [](SimLive& self, uint32_t rank, int32_t slot) { return self.live().met(rank, slot); },
          py::arg("rank"), py::arg("slot"))
      .def(
          "serial",
          [](SimLive& self, uint32_t rank, int32_t slot) { return self.live().serial(rank, slot); },
          py::arg("rank"), py::arg("slot"))
      .def("enter", &SimLive::enter, py::arg("rank"), Free())
      .def("switch", &SimLive::pass, py::arg("rank"), py::arg("to"), Free())
      .def("leave", &SimLive::leave, py::arg("to"), Free())
      .def("abort", &SimLive::abort, Free())
      .def("outcome", &SimLive::outcome)
      .def("program", &SimLive::program);
}

}  // namespace leeboard

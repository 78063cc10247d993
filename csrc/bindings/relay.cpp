// leeboard._C.Relay and Star: links of known rate and delay, for `leeboard sim validate`.
#include "relay/relay.h"

#include <pybind11/stl.h>

#include <memory>
#include <utility>
#include <vector>

#include "bindings.h"
#include "relay/star.h"

namespace leeboard {
namespace {

// (up_rate, down_rate, up_delay, down_delay, queue_bytes): bits a second, nanoseconds, bytes.
using PortTuple = std::tuple<double, double, int64_t, int64_t, uint64_t>;

std::vector<relay::PortOptions> ports_of(const std::vector<PortTuple>& given) {
  std::vector<relay::PortOptions> ports;
  for (const auto& [up, down, up_delay, down_delay, queue] : given) {
    ports.push_back({up, down, up_delay, down_delay, queue});
  }
  return ports;
}

py::dict counters_of(const relay::PortCounters& c) {
  py::dict found;
  found["packets_up"] = c.packets_up;
  found["packets_down"] = c.packets_down;
  found["bytes_up"] = c.bytes_up;
  found["bytes_down"] = c.bytes_down;
  found["dropped_up"] = c.dropped_up;
  found["dropped_down"] = c.dropped_down;
  found["longest_up"] = c.longest_up;
  found["longest_down"] = c.longest_down;
  return found;
}

}  // namespace

void bind_relay(py::module_& module) {
  using relay::Relay;
  using relay::Star;
  py::class_<Star>(module, "Star",
                   "Links of known rate and delay around a switch, without a clock.")
      .def(py::init([](const std::vector<PortTuple>& ports, uint32_t framing) {
             return Star(ports_of(ports), framing);
           }),
           py::arg("ports"), py::arg("framing") = 0)
      .def("offer", &Star::offer, py::arg("now"), py::arg("source"), py::arg("target"),
           py::arg("bytes"), py::arg("packet"), py::arg("flow") = 0,
           "False: the queue was full, and it is dropped.")
      .def("next", &Star::next)
      .def(
          "advance",
          [](Star& star, int64_t now) {
            std::vector<relay::Delivery> due;
            std::vector<uint64_t> lost;
            star.advance(now, due, lost);
            std::vector<std::tuple<int64_t, uint32_t, uint64_t>> out;
            for (const relay::Delivery& d : due) out.emplace_back(d.due, d.target, d.packet);
            return std::pair(out, lost);
          },
          py::arg("now"), "((due, target, packet) of what is due, packets that were dropped).")
      .def("counters", [](const Star& star, uint32_t port) {
        if (port >= star.ports()) throw py::index_error("port: there is no such one");
        return counters_of(star.counters(port));
      });
  py::class_<Relay>(module, "Relay", "A thread that moves packets between TUN devices.")
      .def(py::init([](std::vector<int> descriptors, const std::vector<PortTuple>& ports,
                       uint32_t framing, uint32_t network) {
             return std::make_unique<Relay>(std::move(descriptors), ports_of(ports), framing,
                                            network);
           }),
           py::arg("descriptors"), py::arg("ports"), py::arg("framing"), py::arg("network"))
      .def(
          "set_links",
          [](Relay& self, const std::vector<PortTuple>& ports) { self.set_links(ports_of(ports)); })
      .def("real_time", &Relay::real_time)
      .def("report",
           [](const Relay& self) {
             const relay::RelayReport report = self.report();
             py::dict found;
             py::list ports;
             for (const relay::PortCounters& counters : report.ports) {
               ports.append(counters_of(counters));
             }
             found["ports"] = ports;
             found["not_ours"] = report.not_ours;
             found["refused"] = report.refused;
             found["late_mean"] = report.late_mean;
             found["late_most"] = report.late_most;
             found["busy"] = report.busy;
             return found;
           })
      .def("stop", &Relay::stop, py::call_guard<py::gil_scoped_release>());
}

}  // namespace leeboard

// The pieces of the network on their own, for tests and benchmarks.
#include <pybind11/stl.h>

#include <memory>

#include "bindings.h"
#include "sim/alpha_beta.h"
#include "sim/carry.h"
#include "sim/flow.h"
#include "sim_columns.h"
#include "sim_convert.h"

namespace leeboard {
namespace {

struct OwnedRoutes {
  explicit OwnedRoutes(const py::dict& dict) : platform(platform_of(dict)), routes(platform) {}
  OwnedRoutes(const OwnedRoutes&) = delete;
  OwnedRoutes& operator=(const OwnedRoutes&) = delete;

  py::tuple find(uint32_t source, uint32_t target) {
    below(source, platform.devices.size(), "source");
    below(target, platform.devices.size(), "target");
    if (source == target) refuse("target", "is the source");
    const sim::Route& route = routes.find(source, target);
    const std::vector<uint32_t> resources(route.resources.begin(), route.resources.end());
    return py::make_tuple(resources, route.latency, route.overhead, route.bandwidth);
  }

  const sim::Platform platform;
  sim::Routes routes;
};

class CheckedMaxMin {
 public:
  CheckedMaxMin(const std::vector<double>& capacities, double limit)
      : resources_(capacities.size()), shares_(capacities, limit) {
    for (const double capacity : capacities) check(capacity);
    if (!(limit > 0.0)) refuse("limit", "expected more than 0");
  }

  uint32_t add(const std::vector<std::pair<uint32_t, double>>& shares) {
    std::vector<sim::MaxMin::Share> out;
    for (const auto& [resource, weight] : shares) {
      below(resource, resources_, "resource");
      out.push_back({resource, finite(weight, "weight", 1e-9, 1e9)});
    }
    if (out.empty()) refuse("shares", "expected one at least");
    active_.push_back(false);
    return shares_.add(out);
  }
  void set_active(uint32_t flow, bool active) {
    below(flow, active_.size(), "flow");
    if (active_[flow] == active) refuse("flow", active ? "is active" : "is not active");
    active_[flow] = active;
    active ? shares_.activate(flow) : shares_.deactivate(flow);
  }
  void set_capacity(uint32_t resource, double capacity) {
    below(resource, resources_, "resource");
    check(capacity);
    shares_.set_capacity(resource, capacity);
  }
  // Rates of all flows; 0 of those that are not active.
  std::vector<double> solve() {
    shares_.solve();
    std::vector<double> rates;
    for (uint32_t flow = 0; flow < active_.size(); ++flow) rates.push_back(shares_.rate(flow));
    return rates;
  }
  std::vector<double> loads() const {
    std::vector<double> loads;
    for (uint32_t resource = 0; resource < resources_; ++resource) {
      loads.push_back(shares_.load(resource));
    }
    return loads;
  }
  // Resources that the last solve() looked at.
  size_t visited() const { return shares_.visited().size(); }

 private:
  static void check(double capacity) { finite(capacity, "capacity", 0.0, 1e30); }

  size_t resources_;
  std::vector<bool> active_;
  sim::MaxMin shares_;
};

template <class T>
py::array_t<T> array(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::dict carry(const py::dict& platform_dict, const py::dict& messages, const std::string& network,
               uint32_t bins) {
  const sim::Platform platform = platform_of(platform_dict);
  const auto at = numbers<uint64_t>(messages, "at");
  const auto source = numbers<uint32_t>(messages, "source", at.size());
  const auto target = numbers<uint32_t>(messages, "target", at.size());
  const auto bytes = numbers<uint64_t>(messages, "bytes", at.size());
  std::vector<sim::Offer> offers;
  for (size_t i = 0; i < at.size(); ++i) {
    below(source[i], platform.devices.size(), "source");
    below(target[i], platform.devices.size(), "target");
    if (source[i] == target[i]) refuse("target", "is the source");
    offers.push_back({below(at[i], sim::kLongest, "at"), source[i], target[i],
                      below(bytes[i], uint64_t{1} << 62, "bytes")});
  }
  if (network != "flow" && network != "alpha-beta") {
    refuse("network", "got " + network + ", expected flow or alpha-beta");
  }
  std::unique_ptr<sim::Usage> usage;
  std::vector<uint64_t> departed, arrived, ideal;
  {
    const py::gil_scoped_release release;
    const size_t resources = 2 * platform.links.size();
    if (bins > 0) usage = std::make_unique<sim::Usage>(resources, bins);
    sim::Routes routes(platform);
    sim::Carrier carrier(platform, offers, [&](auto& sink) -> std::unique_ptr<sim::Network> {
      if (network == "flow") {
        return std::make_unique<sim::FlowNetwork>(platform, routes, sink, usage.get());
      }
      return std::make_unique<sim::AlphaBeta>(platform, routes, sink, usage.get());
    });
    for (const sim::Delivery& delivery : carrier.run()) {
      departed.push_back(delivery.departed);
      arrived.push_back(delivery.arrived);
    }
    for (const sim::Offer& offer : offers) {
      ideal.push_back(carrier.network().ideal(offer.source, offer.target, offer.bytes));
    }
  }
  py::dict out;
  out["departed"] = array(departed);
  out["arrived"] = array(arrived);
  out["ideal"] = array(ideal);
  py::list links;
  for (uint32_t i = 0; usage != nullptr && i < usage->resources(); ++i) {
    const auto by_bin = usage->bytes_by_bin(i);
    links.append(py::make_tuple(usage->bytes(i), usage->busy(i),
                                std::vector<double>(by_bin.begin(), by_bin.end())));
  }
  out["links"] = links;
  out["bin_ps"] = usage == nullptr ? sim::Time{0} : usage->bin_width();
  return out;
}

}  // namespace

void bind_sim_network(py::module_& module) {
  py::class_<OwnedRoutes>(module, "SimRoutes", "Routes of a platform, found when asked for.")
      .def(py::init<const py::dict&>(), py::arg("platform"))
      .def("find", &OwnedRoutes::find, py::arg("source"), py::arg("target"),
           "(resources, latency ps, overhead ps, bandwidth). A resource is 2 * link + direction.");
  py::class_<CheckedMaxMin>(module, "SimMaxMin", "Max-min fair rates, kept up to date.")
      .def(py::init<const std::vector<double>&, double>(), py::arg("capacities"), py::arg("limit"))
      .def("add", &CheckedMaxMin::add, py::arg("shares"))
      .def("set_active", &CheckedMaxMin::set_active, py::arg("flow"), py::arg("active"))
      .def("set_capacity", &CheckedMaxMin::set_capacity, py::arg("resource"), py::arg("capacity"))
      .def("solve", &CheckedMaxMin::solve)
      .def("loads", &CheckedMaxMin::loads)
      .def("visited", &CheckedMaxMin::visited);
  module.def("sim_carry", &carry, py::arg("platform"), py::arg("messages"), py::arg("network"),
             py::arg("bins"),
             "Messages at given times over a network without programs: when each departed and "
             "arrived (2**64 - 1: never), what it takes alone, and what each link carried.");
}

}  // namespace leeboard

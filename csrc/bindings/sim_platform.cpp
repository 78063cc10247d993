// Platforms: every column is checked, for its length and for its range.
#include <algorithm>

#include "sim/collective.h"
#include "sim/sim_time.h"
#include "sim_columns.h"
#include "sim_convert.h"

namespace leeboard {
namespace {

using namespace sim;

constexpr double kLargest = 1e30;

std::vector<Device> devices_of(const py::dict& dict, Platform& platform) {
  const auto flops = numbers<double>(dict, "device_flops");
  const size_t count = flops.size();
  if (count == 0 || count > kMostDevices) {
    refuse("device_flops", std::to_string(count) + " devices");
  }
  std::array<std::vector<double>, kRates> rates{flops};
  for (size_t k = 1; k < kRates; ++k) {
    const std::string key = "device_flops_" + std::to_string(k);
    rates[k] = dict.contains(key.c_str()) ? numbers<double>(dict, key.c_str(), count)
                                          : std::vector<double>(count);
    for (const double rate : rates[k]) finite(rate, key, 0.0, kLargest);
  }
  const auto bandwidth = numbers<double>(dict, "device_memory_bandwidth", count);
  const auto memory = numbers<uint64_t>(dict, "device_memory", count);
  const auto speed = numbers<double>(dict, "device_speed", count);
  const auto overhead = numbers<uint64_t>(dict, "device_overhead", count);
  const auto jitter = numbers<double>(dict, "device_jitter", count);
  const auto reduce = numbers<double>(dict, "device_reduce_bandwidth", count);
  platform.curve_work = numbers<double>(dict, "curve_work");
  platform.curve_efficiency = numbers<double>(dict, "curve_efficiency", platform.curve_work.size());
  for (const double work : platform.curve_work) finite(work, "curve_work", 1e-30, kLargest);
  for (const double share : platform.curve_efficiency) {
    finite(share, "curve_efficiency", 1e-9, 1.0);
  }
  const auto curves = [&](const char* key) {
    const auto array =
        py::array_t<uint32_t, py::array::c_style | py::array::forcecast>::ensure(entry(dict, key));
    if (!array || array.ndim() != 2 || array.shape(0) != static_cast<py::ssize_t>(count) ||
        array.shape(1) != 2) {
      refuse(key, "expected [devices, 2] of uint32");
    }
    for (size_t i = 0; i < count; ++i) {
      const uint32_t begin = array.at(i, 0), end = array.at(i, 1);
      if (begin > end || end > platform.curve_work.size()) refuse(key, "a range out of bounds");
      for (uint32_t j = begin + 1; j < end; ++j) {
        if (!(platform.curve_work[j] > platform.curve_work[j - 1])) {
          refuse("curve_work", "not ascending");
        }
      }
    }
    return array;
  };
  const auto flops_curve = curves("device_flops_curve");
  const auto bytes_curve = curves("device_bytes_curve");
  std::vector<Device> devices(count);
  for (size_t i = 0; i < count; ++i) {
    std::array<double, kRates> peaks;
    for (size_t k = 0; k < kRates; ++k) peaks[k] = rates[k][i];
    finite(peaks[0], "device_flops", 1e-9, kLargest);
    devices[i] = {peaks,
                  finite(bandwidth[i], "device_memory_bandwidth", 1e-9, kLargest),
                  memory[i],
                  finite(speed[i], "device_speed", 1e-9, 1e9),
                  below(overhead[i], kLongest, "device_overhead"),
                  finite(jitter[i], "device_jitter", 0.0, 100.0),
                  flops_curve.at(i, 0),
                  flops_curve.at(i, 1),
                  bytes_curve.at(i, 0),
                  bytes_curve.at(i, 1),
                  finite(reduce[i], "device_reduce_bandwidth", 0.0, kLargest)};
  }
  return devices;
}

std::vector<Link> links_of(const py::dict& dict, size_t nodes) {
  const auto a = numbers<uint32_t>(dict, "link_a");
  const size_t count = a.size();
  below(count, uint64_t{1} << 30, "link_a");
  const auto b = numbers<uint32_t>(dict, "link_b", count);
  const auto bandwidth = numbers<double>(dict, "link_bandwidth", count);
  const auto latency = numbers<uint64_t>(dict, "link_latency", count);
  const auto overhead = numbers<uint64_t>(dict, "link_overhead", count);
  const auto duplex = numbers<uint8_t>(dict, "link_full_duplex", count);
  std::vector<Link> links(count);
  for (size_t i = 0; i < count; ++i) {
    below(a[i], nodes, "link_a");
    below(b[i], nodes, "link_b");
    if (a[i] == b[i]) refuse("link_b", "link " + std::to_string(i) + " joins a node to itself");
    // Sums along a route stay far from overflow.
    links[i] = {a[i],
                b[i],
                finite(bandwidth[i], "link_bandwidth", 1e-9, kLargest),
                below(latency[i], kSecond * 1000, "link_latency"),
                below(overhead[i], kSecond * 1000, "link_overhead"),
                duplex[i] != 0};
  }
  return links;
}

Protocol protocol_of(const py::dict& dict) {
  const auto time = [&](const char* key) {
    return below(scalar<uint64_t>(dict, key), kSecond * 1000, key);
  };
  const auto real = [&](const char* key, double least, double most) {
    return finite(scalar<double>(dict, key), key, least, most);
  };
  Protocol protocol;
  protocol.eager_limit = scalar<uint64_t>(dict, "eager_limit");
  protocol.handshake =
      static_cast<Handshake>(below(scalar<uint64_t>(dict, "handshake"), 2, "handshake"));
  protocol.send_buffer = scalar<uint64_t>(dict, "send_buffer");
  protocol.send_overhead = time("send_overhead");
  protocol.recv_overhead = time("recv_overhead");
  protocol.goodput = real("goodput", 1e-6, 1.0);
  protocol.cross_traffic = real("cross_traffic", 0.0, 1.0);
  protocol.rate_limit = real("rate_limit", 0.0, kLargest);
  protocol.jitter = real("jitter", 0.0, 100.0);
  protocol.loss = real("loss", 0.0, 0.999);
  protocol.packet = scalar<uint64_t>(dict, "packet");
  if (protocol.packet == 0) refuse("packet", "got 0, expected bytes");
  protocol.loopback_bandwidth = real("loopback_bandwidth", 0.0, kLargest);
  protocol.loopback_latency = time("loopback_latency");
  return protocol;
}

std::vector<SelectorRow> selector_of(const py::dict& dict) {
  const auto rows = py::array_t<uint64_t, py::array::c_style | py::array::forcecast>::ensure(
      entry(dict, "selector"));
  if (!rows || rows.ndim() != 2 || (rows.shape(0) > 0 && rows.shape(1) != 6)) {
    refuse("selector", "expected [rows, 6] of uint64");
  }
  std::vector<SelectorRow> selector;
  for (py::ssize_t i = 0; i < rows.shape(0); ++i) {
    const auto collective =
        static_cast<Collective>(below(rows.at(i, 0), kCollectives, "selector, collective"));
    const auto algorithm =
        static_cast<uint32_t>(below(rows.at(i, 5), kAlgorithms, "selector, algorithm"));
    if (!supports(collective, static_cast<Algorithm>(algorithm))) {
      refuse("selector", std::string(name_of(collective)) + " has no algorithm " +
                             name_of(static_cast<Algorithm>(algorithm)));
    }
    const auto small = [](uint64_t ranks) {
      return static_cast<uint32_t>(std::min<uint64_t>(ranks, UINT32_MAX));
    };
    selector.push_back({collective, small(rows.at(i, 1)), small(rows.at(i, 2)), rows.at(i, 3),
                        rows.at(i, 4), algorithm});
  }
  return selector;
}

std::vector<Change> changes_of(const py::dict& dict, const char* key, size_t count) {
  const auto columns = entry(dict, key).cast<py::tuple>();
  if (columns.size() != 3) refuse(key, "expected (index, at, factor)");
  const auto index = array_of<uint32_t>(columns[0], key);
  const auto at = array_of<uint64_t>(columns[1], key);
  const auto factor = array_of<double>(columns[2], key);
  if (at.size() != index.size() || factor.size() != index.size()) {
    refuse(key, "columns of unequal length");
  }
  std::vector<Change> changes(index.size());
  for (size_t i = 0; i < index.size(); ++i) {
    if (i > 0 && at[i] < at[i - 1]) refuse(key, "not ascending in time");
    changes[i] = {static_cast<uint32_t>(below(index[i], count, key)), below(at[i], kLongest, key),
                  finite(factor[i], key, 0.0, 1e9)};
  }
  return changes;
}

}  // namespace

Platform platform_of(const py::dict& dict) {
  Platform platform;
  platform.devices = devices_of(dict, platform);
  const size_t devices = platform.devices.size();
  platform.switches =
      static_cast<uint32_t>(below(scalar<uint64_t>(dict, "switches"), kMostDevices, "switches"));
  platform.links = links_of(dict, devices + platform.switches);
  for (const py::handle given : entry(dict, "routes").cast<py::list>()) {
    const auto route = given.cast<py::tuple>();
    if (route.size() != 3) refuse("routes", "expected (source, target, links)");
    GivenRoute out{route[0].cast<uint32_t>(), route[1].cast<uint32_t>(),
                   array_of<uint32_t>(route[2], "routes")};
    below(out.source, devices, "routes, source");
    below(out.target, devices, "routes, target");
    for (const uint32_t link : out.links) below(link, platform.links.size(), "routes, link");
    platform.routes.push_back(std::move(out));
  }
  platform.protocol = protocol_of(entry(dict, "protocol").cast<py::dict>());
  platform.selector = selector_of(dict);
  platform.device_changes = changes_of(dict, "device_changes", devices);
  platform.link_changes = changes_of(dict, "link_changes", platform.links.size());
  platform.placement = numbers<uint32_t>(dict, "placement");
  for (const uint32_t device : platform.placement) below(device, devices, "placement");
  platform.island = numbers<uint32_t>(dict, "island");
  if (!platform.island.empty() && platform.island.size() != devices) {
    refuse("island", "expected one a device, or none");
  }
  return platform;
}

}  // namespace leeboard

#include "sim_convert.h"

#include <algorithm>
#include <limits>
#include <unordered_set>

#include "sim/collective.h"
#include "sim/sim_time.h"
#include "sim_columns.h"

namespace leeboard {
namespace {

using namespace sim;

constexpr double kLargest = 1e30;
constexpr int32_t kMostSlots = 1 << 20;
constexpr uint32_t kMostDevices = 1u << 28;
constexpr uint64_t kMostBytes = uint64_t{1} << 62;

std::string op_name(uint64_t index) { return "ops[" + std::to_string(index) + "]"; }

// Loops pair up inside [begin, end); a call goes to a range that is checked on its own.
void check_range(const Program& program, uint64_t begin, uint64_t end, bool shared,
                 std::vector<uint64_t>& open) {
  open.clear();
  for (uint64_t i = begin; i < end; ++i) {
    const Op& op = program.ops[i];
    if (op.kind == OpKind::kLoop) {
      if (op.b <= i || op.b >= end || program.ops[op.b].kind != OpKind::kLoopEnd ||
          program.ops[op.b].b != i) {
        refuse(op_name(i), "a loop whose end is not in its range");
      }
      open.push_back(op.b);
    } else if (op.kind == OpKind::kLoopEnd) {
      if (open.empty() || open.back() != i) refuse(op_name(i), "a loop's end without its loop");
      open.pop_back();
    } else if (op.kind == OpKind::kCall) {
      if (shared) refuse(op_name(i), "a call inside a called range");
    } else if (op.kind == OpKind::kTake && op.b != kUnknown) {
      if (open.empty() || open.back() != op.b) {
        refuse(op_name(i), "a take that leaves a loop that is not its own");
      }
    }
  }
  if (!open.empty()) refuse(op_name(open.back()), "a loop's end outside its range");
}

void check_op(const Program& program, uint64_t index) {
  const Op& op = program.ops[index];
  const std::string name = op_name(index);
  const auto ranks = static_cast<int32_t>(program.ranks());
  const auto tagged = [&](bool any) {
    if (op.tag < (any ? kAny : 0)) refuse(name, "tag " + std::to_string(op.tag));
  };
  const auto peered = [&](int32_t bound, bool any) {
    if (op.peer < (any ? kAny : 0) || op.peer >= bound) {
      refuse(name, "peer " + std::to_string(op.peer));
    }
  };
  const auto sized = [&](uint64_t bytes) {
    if (bytes > kMostBytes) refuse(name, std::to_string(bytes) + " bytes");
  };
  const auto timed = [&](uint64_t ps) {
    if (ps > kLongest) refuse(name, std::to_string(ps) + " ps");
  };
  if (op.slot < kNoSlot || op.slot >= kMostSlots) refuse(name, "slot " + std::to_string(op.slot));
  bool streams = false;
  switch (op.kind) {
    case OpKind::kCompute:
      streams = true;
      break;
    case OpKind::kDelay:
      streams = true;
      timed(op.a);
      break;
    case OpKind::kRandom:
      streams = true;
      timed(op.a);
      if (op.flags > static_cast<uint16_t>(Draw::kUniform)) refuse(name, "unknown distribution");
      if (op.flags == static_cast<uint16_t>(Draw::kUniform) && op.b > op.a) {
        refuse(name, "a uniform draw that may be negative");
      }
      if (op.flags == static_cast<uint16_t>(Draw::kLognormal) && op.b > 100'000'000) {
        refuse(name, "sigma beyond 100");
      }
      break;
    case OpKind::kSend:
      streams = true;
      tagged(false);
      peered(ranks, false);
      sized(op.a);
      break;
    case OpKind::kRecv:
      streams = true;
      tagged(true);
      peered(ranks, true);
      if (op.a != kUnknown) sized(op.a);
      break;
    case OpKind::kWait:
      streams = op.slot >= 0;
      break;
    case OpKind::kSync:
      if (op.peer < kAny || op.peer > 255 + static_cast<int32_t>(program.groups())) {
        refuse(name, "stream " + std::to_string(op.peer));
      }
      break;
    case OpKind::kCollective: {
      streams = true;
      if (op.flags >= kCollectives) refuse(name, "unknown collective");
      if (op.tag < 0 || static_cast<uint32_t>(op.tag) >= program.groups()) {
        refuse(name, "group " + std::to_string(op.tag));
      }
      const uint64_t size = program.group_offsets[static_cast<size_t>(op.tag) + 1] -
                            program.group_offsets[static_cast<size_t>(op.tag)];
      peered(static_cast<int32_t>(size), true);
      sized(op.a);
      below(op.b & UINT32_MAX, kAlgorithms, name + ", algorithm");
      if (const uint64_t table = op.b >> 32; table > 0) {
        below(table - 1, program.size_offsets.size(), name + ", size table");
        if (op.flags != static_cast<uint16_t>(Collective::kAllToAll)) {
          refuse(name, "a size table for something else than all_to_all");
        }
        const uint64_t begin = program.size_offsets[table - 1];
        if (program.sizes.size() - begin < size * size) refuse(name, "a size table too short");
      }
      break;
    }
    case OpKind::kLoop:
    case OpKind::kLoopEnd:
      below(op.b, program.ops.size(), name + ", other end");
      break;
    case OpKind::kMark:
      below(op.a, std::numeric_limits<int32_t>::max(), name + ", name");
      break;
    case OpKind::kCall:
      if (op.a > op.b || op.b > program.ops.size()) refuse(name, "a call out of range");
      break;
    case OpKind::kAlloc:
    case OpKind::kFree:
      sized(op.a);
      break;
    case OpKind::kTake:
    case OpKind::kDone:
      if (op.tag < 0 || static_cast<size_t>(op.tag) >= program.queues.size()) {
        refuse(name, "queue " + std::to_string(op.tag));
      }
      break;
    default:
      refuse(name, "unknown kind " + std::to_string(static_cast<int>(op.kind)));
  }
  if (op.stream != 0 && !streams) refuse(name, "an op that does not run on a stream");
}

void check_groups(const Program& program) {
  const auto& offsets = program.group_offsets;
  const uint64_t ranks = program.ranks();
  if (offsets.size() < 2 || offsets[0] != 0 || offsets.back() != program.group_members.size()) {
    refuse("group_offsets", "expected 0 up to the number of members, and group 0 at least");
  }
  std::vector<uint32_t> seen(ranks, UINT32_MAX);
  for (uint32_t group = 0; group < program.groups(); ++group) {
    if (offsets[group] > offsets[group + 1]) refuse("group_offsets", "not ascending");
    for (uint64_t i = offsets[group]; i < offsets[group + 1]; ++i) {
      const int32_t member = program.group_members[i];
      if (member < 0 || static_cast<uint64_t>(member) >= ranks || seen[member] == group) {
        refuse("group_members", "rank " + std::to_string(member) + " in group " +
                                    std::to_string(group) + ", out of range or twice");
      }
      seen[member] = group;
      if (group == 0 && static_cast<uint64_t>(member) != i) {
        refuse("group_members", "group 0 is every rank in order");
      }
    }
  }
  if (offsets[1] != ranks) refuse("group_offsets", "group 0 is every rank in order");
}

Queue queue_of(const py::dict& dict) {
  Queue queue;
  queue.kind = static_cast<Queue::Kind>(below(scalar<uint64_t>(dict, "kind"), 3, "queue kind"));
  queue.count = below(scalar<uint64_t>(dict, "count"), uint64_t{1} << 31, "queue count");
  queue.mean = finite(scalar<double>(dict, "mean"), "queue mean", 0.0, 1e7);
  queue.clients = scalar<uint32_t>(dict, "clients");
  queue.seed = scalar<uint64_t>(dict, "seed");
  queue.times = numbers<uint64_t>(dict, "times");
  if (queue.kind == Queue::Kind::kTimes && queue.times.size() != queue.count) {
    refuse("queue times", "not as many as count");
  }
  for (size_t i = 0; i < queue.times.size(); ++i) {
    if (queue.times[i] > kLongest || (i > 0 && queue.times[i] < queue.times[i - 1])) {
      refuse("queue times", "not ascending, or past 106 days");
    }
  }
  return queue;
}

std::vector<Op> ops_of(const py::object& value) {
  if (!py::isinstance<py::array>(value)) refuse("ops", "expected a numpy array");
  const auto array = py::array::ensure(value);
  if (array.ndim() != 1 || array.itemsize() != sizeof(Op) ||
      !array.dtype().equal(py::dtype::of<Op>())) {
    refuse("ops", "got " + py::str(array.dtype()).cast<std::string>() + ", expected " +
                      py::str(py::dtype::of<Op>()).cast<std::string>());
  }
  const auto plain = py::array_t<Op, py::array::c_style | py::array::forcecast>::ensure(array);
  return std::vector<Op>(plain.data(), plain.data() + plain.size());
}

}  // namespace

Program program_of(const py::dict& dict) {
  Program program;
  program.ops = ops_of(entry(dict, "ops"));
  below(program.ops.size(), UINT32_MAX, "ops");
  program.begin = numbers<uint64_t>(dict, "begin");
  program.end = numbers<uint64_t>(dict, "end", program.begin.size());
  if (program.begin.empty() || program.begin.size() > kMostDevices) {
    refuse("begin", std::to_string(program.begin.size()) + " ranks");
  }
  program.group_offsets = numbers<uint64_t>(dict, "group_offsets");
  program.group_members = numbers<int32_t>(dict, "group_members");
  program.size_offsets = numbers<uint64_t>(dict, "size_offsets");
  program.sizes = numbers<uint64_t>(dict, "sizes");
  for (const uint64_t offset : program.size_offsets) {
    if (offset > program.sizes.size()) refuse("size_offsets", "beyond sizes");
  }
  for (const uint64_t size : program.sizes) {
    if (size > kMostBytes) refuse("sizes", std::to_string(size) + " bytes");
  }
  for (const py::handle queue : entry(dict, "queues").cast<py::list>()) {
    program.queues.push_back(queue_of(queue.cast<py::dict>()));
  }
  check_groups(program);
  // Ranges that many ranks share are checked once.
  std::unordered_set<uint64_t> called, owned;
  std::vector<uint64_t> open;
  // Ranges may overlap, but reading must not become quadratic.
  uint64_t budget = 64 * program.ops.size() + 1'000'000;
  const auto spend = [&](uint64_t length) {
    if (length > budget) refuse("ops", "called ranges that overlap too much");
    budget -= length;
  };
  for (uint64_t i = 0; i < program.ops.size(); ++i) {
    check_op(program, i);
    const Op& op = program.ops[i];
    if (op.kind == OpKind::kCall && called.insert(op.a << 32 | op.b).second) {
      spend(op.b - op.a);
      check_range(program, op.a, op.b, true, open);
    }
  }
  for (size_t rank = 0; rank < program.begin.size(); ++rank) {
    const uint64_t begin = program.begin[rank], end = program.end[rank];
    if (begin > end || end > program.ops.size()) {
      refuse("end", "rank " + std::to_string(rank) + " has ops " + std::to_string(begin) + " to " +
                        std::to_string(end));
    }
    if (!owned.insert(begin << 32 | end).second) continue;
    spend(end - begin);
    check_range(program, begin, end, false, open);
  }
  return program;
}

namespace {

std::vector<Device> devices_of(const py::dict& dict, Platform& platform) {
  const auto flops = numbers<double>(dict, "device_flops");
  const size_t count = flops.size();
  if (count == 0 || count > kMostDevices) {
    refuse("device_flops", std::to_string(count) + " devices");
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
    devices[i] = {finite(flops[i], "device_flops", 1e-9, kLargest),
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

// Programs: every op is checked before an engine sees it.
#include <limits>
#include <unordered_set>

#include "sim/collective.h"
#include "sim/sim_time.h"
#include "sim_columns.h"
#include "sim_convert.h"

namespace leeboard {
namespace {

using namespace sim;

constexpr int32_t kMostSlots = 1 << 20;
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
      below(op.flags, kRates, name + ", rate");
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
    case OpKind::kSleep:
      timed(op.a);
      break;
    case OpKind::kSignal:
      peered(ranks, false);
      timed(op.a);
      break;
    case OpKind::kAwait:
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

}  // namespace leeboard

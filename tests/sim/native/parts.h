// Small platforms and programs for the native tests.
#pragma once

#include <cstdint>
#include <vector>

#include "sim/platform.h"
#include "sim/program.h"
#include "sim/random.h"

namespace leeboard::sim::test {

inline Device device() {
  return {.flops = {1e12},
          .memory_bandwidth = 1e11,
          .memory = 0,
          .speed = 1.0,
          .overhead = 0,
          .jitter = 0.0,
          .flops_curve_begin = 0,
          .flops_curve_end = 0,
          .bytes_curve_begin = 0,
          .bytes_curve_end = 0,
          .reduce_bandwidth = 0.0};
}

inline Protocol protocol(uint64_t eager_limit = UINT64_MAX) {
  return {.eager_limit = eager_limit,
          .handshake = Handshake::kNotify,
          .send_buffer = 0,
          .send_overhead = 0,
          .recv_overhead = 0,
          .goodput = 1.0,
          .cross_traffic = 0.0,
          .rate_limit = 0.0,
          .jitter = 0.0,
          .loss = 0.0,
          .packet = 1500,
          .loopback_bandwidth = 0.0,
          .loopback_latency = 0};
}

inline Link link(uint32_t a, uint32_t b, double bandwidth, Time latency) {
  return {.a = a,
          .b = b,
          .bandwidth = bandwidth,
          .latency = latency,
          .overhead = 0,
          .full_duplex = true};
}

// Devices around one switch; 1 GB/s and 1 us each way of each link.
inline Platform star(uint32_t devices) {
  Platform platform;
  platform.devices.assign(devices, device());
  platform.switches = 1;
  for (uint32_t i = 0; i < devices; ++i) {
    platform.links.push_back(link(i, devices, 1e9, 1'000'000));
  }
  platform.protocol = protocol();
  return platform;
}

// A connected graph of any shape: a random tree and a few more links, all different.
inline Platform random_graph(uint32_t devices, uint32_t switches, RandomStream& random) {
  Platform platform;
  platform.devices.assign(devices, device());
  platform.switches = switches;
  platform.protocol = protocol();
  const uint32_t nodes = devices + switches;
  const auto join = [&](uint32_t a, uint32_t b) {
    Link added = link(a, b, 1e8 * (1.0 + 20.0 * random.uniform()), random.bits() % 50'000'000);
    added.full_duplex = random.bits() % 4 != 0;
    added.overhead = random.bits() % 3 == 0 ? random.bits() % 5'000'000 : 0;
    platform.links.push_back(added);
  };
  for (uint32_t node = 1; node < nodes; ++node) {
    join(node, static_cast<uint32_t>(random.bits() % node));
  }
  for (uint32_t i = 0; i < nodes / 2; ++i) {
    const auto a = static_cast<uint32_t>(random.bits() % nodes);
    const auto b = static_cast<uint32_t>(random.bits() % nodes);
    if (a != b) join(a, b);
  }
  return platform;
}

inline Op op(OpKind kind, int32_t peer = 0, int32_t tag = 0, uint64_t a = 0, uint64_t b = 0,
             int32_t slot = kNoSlot) {
  return {.kind = kind,
          .stream = 0,
          .flags = 0,
          .peer = peer,
          .tag = tag,
          .slot = slot,
          .a = a,
          .b = b};
}

// Adds a rank and its ops.
inline void add_rank(Program& program, const std::vector<Op>& ops) {
  if (program.group_offsets.empty()) program.group_offsets = {0, 0};
  program.group_members.push_back(static_cast<int32_t>(program.ranks()));
  program.group_offsets[1] = program.group_members.size();
  const uint64_t begin = program.ops.size();
  program.begin.push_back(begin);
  program.ops.insert(program.ops.end(), ops.begin(), ops.end());
  program.end.push_back(program.ops.size());
}

// Messages between random ranks under way together, with computing in between; it cannot deadlock.
inline Program random_exchange(uint32_t ranks, uint32_t messages, RandomStream& random) {
  std::vector<std::vector<Op>> ops(ranks);
  std::vector<int32_t> slots(ranks, 0);
  for (uint32_t m = 0; m < messages; ++m) {
    const uint64_t source = random.bits() % ranks, target = random.bits() % ranks;
    const auto tag = static_cast<int32_t>(random.bits() % 4);
    const uint64_t bytes = random.bits() % 4 == 0 ? 0 : random.bits() % 100'000;
    ops[source].push_back(
        op(OpKind::kSend, static_cast<int32_t>(target), tag, bytes, 0, slots[source]++));
    ops[target].push_back(
        op(OpKind::kRecv, static_cast<int32_t>(source), tag, kUnknown, 0, slots[target]++));
    if (random.bits() % 3 == 0) {
      ops[random.bits() % ranks].push_back(op(OpKind::kDelay, 0, 0, random.bits() % 100'000'000));
    }
  }
  Program program;
  for (auto& list : ops) {
    list.push_back(op(OpKind::kWait, 0, 0, 0, 0, kAllSlots));
    add_rank(program, list);
  }
  return program;
}

}  // namespace leeboard::sim::test

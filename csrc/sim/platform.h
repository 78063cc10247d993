// What programs run on: devices, a graph of links, protocols, a table of collective algorithms.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "program.h"
#include "sim_time.h"

namespace leeboard::sim {

// From `at` on, a device or link runs at `factor` times its speed (0: not at all).
struct Change {
  uint32_t index;
  Time at;
  double factor;
};

// Any, float64, float32, 16-bit floats, 8-bit floats, int8: PRECISIONS of leeboard.sim.ops.
inline constexpr size_t kRates = 6;

struct Device {
  // A second, by the kind of numbers that a compute op names in its flags; 0: the first.
  std::array<double, kRates> flops;
  double memory_bandwidth;  // bytes a second
  uint64_t memory;          // bytes; 0: not limited
  double speed;             // divides every time on the device
  Time overhead;            // added to every compute op
  double jitter;            // sigma of the logarithm of a lognormal factor of mean 1
  // Efficiency against work (flops or bytes): ranges of Platform::curve_*; empty: always 1.
  uint32_t flops_curve_begin, flops_curve_end;
  uint32_t bytes_curve_begin, bytes_curve_end;
  double reduce_bandwidth;  // bytes a second that a reduction takes in; 0: costs nothing
};

// Nodes 0 .. devices-1 are the devices, the others are switches.
struct Link {
  uint32_t a, b;
  double bandwidth;  // bytes a second, each way (half duplex: both ways together)
  Time latency;      // one way
  Time overhead;     // of a message on this link, in which it carries nothing else for the pair
  bool full_duplex;
};

// A route that shortest path would not give. The other way is another route.
struct GivenRoute {
  uint32_t source, target;
  std::vector<uint32_t> links;
};

enum class Handshake : uint8_t {
  kNotify = 0,  // the receiver tells when it is ready (gloo): two latencies unless told before
  kRequest = 1  // the sender asks and is told (MPI): three latencies
};

struct Protocol {
  // Messages up to this many bytes leave without a handshake; 0: not even empty ones.
  uint64_t eager_limit;
  Handshake handshake;
  // Messages up to this many bytes are sent, for their sender, when they begin to leave: its host
  // has taken them over. 0: only empty ones.
  uint64_t send_buffer;
  Time send_overhead;         // the sending rank's own time a message
  Time recv_overhead;         // the receiving rank's own time a message
  double goodput;             // payload share of the bandwidth, 0 < goodput <= 1
  double cross_traffic;       // acknowledgements: share of a flow's rate on the way back
  double rate_limit;          // bytes a second of one message at most (window / RTT); 0: none
  double jitter;              // sigma of the logarithm of a lognormal factor of mean 1 on latency
  double loss;                // probability that a packet is lost
  uint64_t packet;            // bytes
  double loopback_bandwidth;  // between ranks of one device; 0: costs nothing
  Time loopback_latency;

  bool eager(uint64_t bytes) const { return eager_limit > 0 && bytes <= eager_limit; }
};

// The first row that fits names the algorithm.
struct SelectorRow {
  Collective collective;
  uint32_t min_ranks, max_ranks;
  uint64_t min_bytes, max_bytes;
  uint32_t algorithm;  // an Algorithm
};

struct Platform {
  std::vector<Device> devices;
  std::vector<double> curve_work, curve_efficiency;
  uint32_t switches = 0;
  std::vector<Link> links;
  std::vector<GivenRoute> routes;
  Protocol protocol;
  std::vector<SelectorRow> selector;
  // Ascending in time.
  std::vector<Change> device_changes, link_changes;
  // Rank r runs on device placement[r]; empty: on device r.
  std::vector<uint32_t> placement;
  // Hierarchical collectives: ranks of devices of one island exchange first. Empty: one island.
  std::vector<uint32_t> island;
};

}  // namespace leeboard::sim

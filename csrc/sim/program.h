// What ranks do: flat arrays of 32-byte ops, the layout of the trace file (docs/sim/trace.md).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace leeboard::sim {

enum class OpKind : uint8_t {
  kCompute = 1,     // a: flops, b: bytes of memory traffic; flags: which of the device's rates
  kDelay = 2,       // a: picoseconds on the device, as on a device of speed 1
  kRandom = 3,      // a: mean, b: parameter (see Draw); flags: Draw
  kSend = 4,        // peer, tag, a: bytes, slot
  kRecv = 5,        // peer or kAny, tag or kAny, a: bytes expected (kUnknown: any), slot
  kWait = 6,        // slot, or kAllSlots
  kSync = 7,        // peer: the stream to wait for, or kAny for all
  kCollective = 8,  // flags: Collective, tag: group, peer: root (rank in the group), a: bytes,
                    // b: algorithm (0: the platform's table chooses) | size table << 32
  kLoop = 9,        // a: times (0: skipped), b: index of its kLoopEnd
  kLoopEnd = 10,    // b: index of its kLoop
  kMark = 11,       // a: name
  kCall = 12,       // ops [a, b) of the shared part, which holds no kCall and whole loops only
  kAlloc = 13,      // a: bytes
  kFree = 14,       // a: bytes
  kTake = 15,       // tag: queue; waits for a request. b: index of the kLoopEnd to leave through
                    // when the queue has run dry for good (kUnknown: an error)
  kDone = 16,       // tag: queue; the request that the rank works on is answered
  kSleep = 17,      // a: picoseconds in which the device is free; then the rank is in step
  kSignal = 18,     // peer: a rank, which is told; it may go on a picoseconds later
  kAwait = 19,      // until the rank has been told: each signal once, in order
};

enum class Draw : uint16_t {
  kExponential = 0,  // mean a
  kLognormal = 1,    // mean a, b: sigma of the logarithm, in millionths
  kUniform = 2,      // between a - b and a + b picoseconds
};

enum class Collective : uint16_t {
  kAllReduce = 0,
  kAllGather = 1,
  kReduceScatter = 2,
  kBroadcast = 3,
  kReduce = 4,
  kGather = 5,
  kScatter = 6,
  kAllToAll = 7,
  kBarrier = 8,
};
inline constexpr int kCollectives = 9;

inline constexpr int32_t kAny = -1;
inline constexpr int32_t kNoSlot = -1;
inline constexpr int32_t kAllSlots = -1;
inline constexpr uint64_t kUnknown = UINT64_MAX;

// The bytes of a collective are those of the tensor that a rank passes in (broadcast and scatter:
// that the root passes in). Chunk i of P is bytes / P, and one more for i < bytes % P.
struct Op {
  OpKind kind;
  // 0: the rank's own thread, which the op blocks. Others: queued there, run in order, beside it.
  uint8_t stream;
  uint16_t flags;
  int32_t peer;
  int32_t tag;
  // A request of this number, outstanding until a kWait: makes an op of stream 0 non-blocking.
  int32_t slot;
  uint64_t a;
  uint64_t b;
};
static_assert(sizeof(Op) == 32);

// Where requests come from.
struct Queue {
  enum class Kind : uint8_t { kTimes = 0, kPoisson = 1, kClosed = 2 };
  Kind kind;
  uint64_t count;    // requests in all
  double mean;       // kPoisson: seconds between arrivals; kClosed: mean think time
  uint32_t clients;  // kClosed
  uint64_t seed;
  std::vector<uint64_t> times;  // kTimes: picoseconds, ascending
};

struct Program {
  std::vector<Op> ops;
  // Ops [begin[r], end[r]) are rank r's; ranks may share a range.
  std::vector<uint64_t> begin, end;
  // Members of group g: ranks group_members[group_offsets[g] .. group_offsets[g + 1]). Group 0 is
  // every rank in order.
  std::vector<uint64_t> group_offsets;
  std::vector<int32_t> group_members;
  // Uneven all-to-all: table t is a P x P matrix of bytes, row = source, from size_offsets[t] on.
  std::vector<uint64_t> size_offsets;
  std::vector<uint64_t> sizes;
  std::vector<Queue> queues;

  uint32_t ranks() const { return static_cast<uint32_t>(begin.size()); }
  uint32_t groups() const { return static_cast<uint32_t>(group_offsets.size()) - 1; }
};

}  // namespace leeboard::sim

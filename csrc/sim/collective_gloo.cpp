// gloo's rings (gloo/allreduce.cc, reduce.cc, allgather.cc) and tree (broadcast.cc). In a ring two
// pieces are under way: piece i + 2 is sent, and its receive posted, once i has come in.
#include "collective_rounds.h"

namespace leeboard::sim {
namespace {

// Segments hold whole numbers, of float32.
constexpr uint64_t kElement = 4;
constexpr uint64_t kLongestSegment = uint64_t{1} << 20;
constexpr uint64_t kMostSegments = uint64_t{1} << 28;

uint64_t round_up(uint64_t value, uint64_t step) { return (value + step - 1) / step * step; }

struct Segments {
  uint64_t bytes, length;
  uint32_t each, count;

  Segments(uint64_t total, uint32_t n) : bytes(total) {
    const uint64_t least = std::min(total / kLongestSegment + 1, kMostSegments);
    const uint64_t enough = total % kLongestSegment == 0 && total > 0 ? least - 1 : least;
    const uint64_t segments = round_up(std::max(enough, uint64_t{2} * n), n);
    count = static_cast<uint32_t>(segments);
    each = count / n;
    length = round_up((total + segments - 1) / segments, kElement);
  }
  // Segments past the end are empty: then there is no message.
  uint64_t range(uint64_t begin, uint64_t end) const {
    return std::min(end * length, bytes) - std::min(begin * length, bytes);
  }
  uint64_t operator()(uint32_t segment) const { return range(segment, segment + uint64_t{1}); }
};

// n - 1 chunks of segments pass: the first of them sent is `sent`, the first received `received`.
// The last round holds nothing: what follows waits for both of the last segments.
void pass(const Segments& segments, uint32_t n, uint32_t rank, uint32_t k, uint32_t sent,
          uint32_t received, bool reduce, Round& out) {
  if (k == segments.count - segments.each) return;
  send_some(out, wrap(rank + n - 1, n), segments(wrap(sent + k, segments.count)));
  const uint64_t bytes = segments(wrap(received + k, segments.count));
  receive_some(out, wrap(rank + 1, n), bytes);
  if (reduce) out.reduced = bytes;
}

// Every rank's block goes around in two halves, which may be empty.
void gather(const Schedule& s, uint32_t rank, Cursor& at, Round& out) {
  if (!at.within(2 * (s.ranks - 1))) return;
  const uint64_t half = at.k() % 2 == 0 ? s.bytes / 2 : s.bytes - s.bytes / 2;
  send(out, wrap(rank + 1, s.ranks), half);
  receive(out, wrap(rank + s.ranks - 1, s.ranks), half);
}

}  // namespace

void gloo_rounds(const Schedule& s, uint32_t rank, Cursor& at, Round& out) {
  if (s.collective == Collective::kAllGather) return gather(s, rank, at, out);
  if (s.bytes == 0) return;
  const uint32_t n = s.ranks;
  const Segments segments(s.bytes, n);
  const uint32_t rounds = segments.count - segments.each + 1;
  const auto chunk = [&](uint32_t r) { return wrap(r, n) * segments.each; };
  if (at.within(rounds)) {
    return pass(segments, n, rank, at.k(), chunk(rank + 1), chunk(wrap(rank + 1, n) + 1), true,
                out);
  }
  if (s.collective != Collective::kReduce) {
    // torch's reduce_scatter over gloo is an all_reduce of which each rank keeps its chunk.
    if (at.within(rounds)) {
      pass(segments, n, rank, at.k(), chunk(rank), chunk(rank + 1), false, out);
    }
    return;
  }
  if (!at.within(1)) return;
  const auto size = [&](uint32_t r) {
    return segments.range(uint64_t{r} * segments.each, (uint64_t{r} + 1) * segments.each);
  };
  if (rank != s.root) return send_some(out, s.root, size(rank));
  everybody(n, rank, [&](uint32_t, uint32_t from) { receive_some(out, from, size(from)); });
}

// Member v of the tree (the root is 0) receives from the one without v's highest bit, then sends to
// v + 2^j for every higher bit, to all of them at once.
void gloo_tree(const Schedule& s, uint32_t rank, Cursor& at, Round& out) {
  const uint32_t n = s.ranks, v = wrap(rank + n - s.root, n);
  const auto name = [&](uint32_t member) { return wrap(member + s.root, n); };
  if (v > 0 && at.within(1)) return receive(out, name(v ^ std::bit_floor(v)), s.bytes);
  const auto lowest = static_cast<uint32_t>(std::bit_width(v));
  if ((uint64_t{1} << lowest) + v >= n || !at.within(1)) return;
  for (uint64_t bit = uint64_t{1} << lowest; v + bit < n; bit <<= 1) {
    send(out, name(v + static_cast<uint32_t>(bit)), s.bytes);
  }
}

}  // namespace leeboard::sim

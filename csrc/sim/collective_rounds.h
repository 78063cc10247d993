// Rounds of the algorithms, among n members numbered from 0; member `me` asks. Peers are members.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <span>

#include "collective.h"

namespace leeboard::sim {

// n blocks of `each` bytes, the first `extra` of them a byte longer.
struct Blocks {
  uint64_t each;
  uint32_t extra;

  static Blocks cut(uint64_t bytes, uint32_t n) {
    return {bytes / n, static_cast<uint32_t>(bytes % n)};
  }
  uint64_t operator()(uint32_t block) const { return each + (block < extra ? 1 : 0); }
  uint64_t before(uint32_t block) const { return each * block + std::min(block, extra); }
  uint64_t range(uint32_t begin, uint32_t end) const { return before(end) - before(begin); }
  // `count` blocks from `begin` on, around the end of n.
  uint64_t around(uint32_t begin, uint32_t count, uint32_t n) const {
    if (begin + count <= n) return range(begin, begin + count);
    return range(begin, n) + before(begin + count - n);
  }
};

// Finds the phase that a round falls into, and counts the rounds of all phases.
class Cursor {
 public:
  explicit Cursor(uint32_t k) : k_(k) {}
  // Whether the round is one of the next `rounds`; k() is its number among them then.
  bool within(uint32_t rounds) {
    total_ += rounds;
    if (found_ || k_ >= total_) return false;
    k_ -= total_ - rounds;
    return found_ = true;
  }
  uint32_t k() const { return k_; }
  uint32_t total() const { return total_; }

 private:
  uint32_t k_, total_ = 0;
  bool found_ = false;
};

inline void send(Round& out, uint32_t peer, uint64_t bytes) { out.sends.push_back({peer, bytes}); }
inline void receive(Round& out, uint32_t peer, uint64_t bytes) {
  out.recvs.push_back({peer, bytes});
}

// x modulo n, for x < 2n.
inline uint32_t wrap(uint32_t x, uint32_t n) { return x >= n ? x - n : x; }

template <class Name>
void relabel(Round& out, Name name) {
  for (Transfer& transfer : out.sends) transfer.peer = name(transfer.peer);
  for (Transfer& transfer : out.recvs) transfer.peer = name(transfer.peer);
}

inline void relabel(Round& out, std::span<const uint32_t> names) {
  relabel(out, [&](uint32_t member) { return names[member]; });
}

// Ring, n - 1 rounds each. size(i): bytes of block i, which member i is left with.
template <class Size>
void ring_reduce_scatter(uint32_t n, uint32_t me, uint32_t k, Size size, Round& out) {
  const uint32_t received = wrap(wrap(me + n - k - 1, n) + n - 1, n);
  send(out, wrap(me + 1, n), size(wrap(me + n - k - 1, n)));
  receive(out, wrap(me + n - 1, n), out.reduced = size(received));
}

template <class Size>
void ring_all_gather(uint32_t n, uint32_t me, uint32_t k, Size size, Round& out) {
  send(out, wrap(me + 1, n), size(wrap(me + n - k, n)));
  receive(out, wrap(me + n - 1, n), size(wrap(me + n - k - 1, n)));
}

// Binomial tree with member 0 on top. Member v is over v + 2^j for all 2^j below v's lowest bit;
// its subtree are the members from v on, as many as that bit.
inline uint32_t subtree(uint32_t n, uint32_t v) {
  return v == 0 ? n : std::min(v & (~v + 1), n - v);
}

inline uint32_t children(uint32_t n, uint32_t v) {
  return static_cast<uint32_t>(std::bit_width(subtree(n, v) - 1));
}

// Down: a round to receive (but on top), then one for each child, the largest subtree first.
// size(begin, count): bytes that go to a subtree.
inline uint32_t tree_rounds(uint32_t n, uint32_t v) { return children(n, v) + (v > 0 ? 1 : 0); }

template <class Size>
void tree_down(uint32_t n, uint32_t v, uint32_t k, Size size, Round& out) {
  if (v > 0 && k-- == 0) return receive(out, v & (v - 1), size(v, subtree(n, v)));
  const uint32_t child = v + (1u << (children(n, v) - 1 - k));
  send(out, child, size(child, subtree(n, child)));
}

// Up: the other way round. `reduce`: what comes in is combined.
template <class Size>
void tree_up(uint32_t n, uint32_t v, uint32_t k, Size size, bool reduce, Round& out) {
  if (k == children(n, v)) return send(out, v & (v - 1), size(v, subtree(n, v)));
  const uint32_t child = v + (1u << k);
  const uint64_t bytes = size(child, subtree(n, child));
  receive(out, child, bytes);
  if (reduce) out.reduced = bytes;
}

// Dissemination, ceil(log2 n) rounds.
inline uint32_t doublings(uint32_t n) { return static_cast<uint32_t>(std::bit_width(n - 1)); }

inline void dissemination(uint32_t n, uint32_t me, uint32_t k, Round& out) {
  send(out, wrap(me + (1u << k), n), 0);
  receive(out, wrap(me + n - (1u << k), n), 0);
}

// Calls step(to, from) for everybody else, in an order that spreads the load.
template <class Step>
void everybody(uint32_t n, uint32_t me, Step step) {
  for (uint32_t i = 1; i < n; ++i) step(wrap(me + i, n), wrap(me + n - i, n));
}

// What source has for target in an all-to-all.
inline uint64_t share(const Schedule& s, const Blocks& blocks, uint32_t source, uint32_t target) {
  return s.sizes.empty() ? blocks(target) : s.sizes[uint64_t{source} * s.ranks + target];
}

// A message of an uneven all-to-all: none if there is nothing to say.
inline void send_some(Round& out, uint32_t peer, uint64_t bytes) {
  if (bytes > 0) send(out, peer, bytes);
}
inline void receive_some(Round& out, uint32_t peer, uint64_t bytes) {
  if (bytes > 0) receive(out, peer, bytes);
}

// The schedules of hierarchical collectives: see collective_hierarchical.cpp.
void hierarchical_rounds(const Schedule& schedule, uint32_t rank, Cursor& at, Round& out);
// Of gloo's rings and tree: see collective_gloo.cpp.
void gloo_rounds(const Schedule& schedule, uint32_t rank, Cursor& at, Round& out);
void gloo_tree(const Schedule& schedule, uint32_t rank, Cursor& at, Round& out);

}  // namespace leeboard::sim

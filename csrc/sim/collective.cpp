// Schedules of collectives: ring, recursive doubling, binomial tree, direct, pairwise.
#include "collective.h"

#include <stdexcept>

#include "collective_rounds.h"

namespace leeboard::sim {
namespace {

constexpr uint32_t bit(Algorithm algorithm) { return 1u << static_cast<uint32_t>(algorithm); }

// Algorithms of each collective, a bit each.
constexpr uint32_t kSupported[kCollectives] = {
    bit(Algorithm::kRing) | bit(Algorithm::kRecursiveDoubling) | bit(Algorithm::kBinomialTree) |
        bit(Algorithm::kDirect) | bit(Algorithm::kHierarchical) | bit(Algorithm::kGlooRing),
    bit(Algorithm::kRing) | bit(Algorithm::kRecursiveDoubling) | bit(Algorithm::kDirect) |
        bit(Algorithm::kHierarchical) | bit(Algorithm::kGlooRing),
    bit(Algorithm::kRing) | bit(Algorithm::kRecursiveDoubling) | bit(Algorithm::kDirect) |
        bit(Algorithm::kPairwise) | bit(Algorithm::kHierarchical) | bit(Algorithm::kGlooRing),
    bit(Algorithm::kRing) | bit(Algorithm::kBinomialTree) | bit(Algorithm::kDirect) |
        bit(Algorithm::kHierarchical) | bit(Algorithm::kGlooTree),
    bit(Algorithm::kRing) | bit(Algorithm::kBinomialTree) | bit(Algorithm::kDirect) |
        bit(Algorithm::kHierarchical) | bit(Algorithm::kGlooRing),
    bit(Algorithm::kBinomialTree) | bit(Algorithm::kDirect) | bit(Algorithm::kHierarchical),
    bit(Algorithm::kBinomialTree) | bit(Algorithm::kDirect) | bit(Algorithm::kHierarchical),
    bit(Algorithm::kDirect) | bit(Algorithm::kPairwise) | bit(Algorithm::kHierarchical),
    bit(Algorithm::kRecursiveDoubling) | bit(Algorithm::kBinomialTree) | bit(Algorithm::kDirect) |
        bit(Algorithm::kHierarchical),
};

// A power of two of the ranks takes part; each of the first `extra` of them stands for two ranks,
// the odd one, which takes part, and the even one before it.
struct Fold {
  uint32_t ranks, power, extra;

  explicit Fold(uint32_t n) : ranks(n), power(std::bit_floor(n)), extra(n - power) {}
  uint32_t steps() const { return doublings(power); }
  bool outside(uint32_t rank) const { return rank < 2 * extra && rank % 2 == 0; }
  bool stands_for_two(uint32_t rank) const { return rank < 2 * extra && rank % 2 == 1; }
  uint32_t place(uint32_t rank) const { return rank < 2 * extra ? rank / 2 : rank - extra; }
  uint32_t rank(uint32_t place) const { return place < extra ? 2 * place + 1 : place + extra; }
  // The first of the ranks that a place stands for.
  uint32_t first(uint32_t place) const { return place < extra ? 2 * place : place + extra; }
};

// Who takes part is given the others' tensors first, and gives them `result` bytes last.
template <class Step>
void folded(const Fold& fold, uint32_t rank, uint64_t bytes, uint64_t result, Step step, Cursor& at,
            Round& out) {
  if (fold.outside(rank)) {
    if (at.within(1)) return send(out, rank + 1, bytes);
    if (at.within(1)) return receive(out, rank + 1, result);
    return;
  }
  if (fold.stands_for_two(rank) && at.within(1)) return receive(out, rank - 1, out.reduced = bytes);
  if (at.within(fold.steps())) return step(fold.place(rank), at.k());
  if (fold.stands_for_two(rank) && at.within(1)) return send(out, rank - 1, result);
}

void all_reduce_doubling(const Schedule& s, uint32_t rank, Cursor& at, Round& out) {
  const Fold fold(s.ranks);
  const auto step = [&](uint32_t place, uint32_t k) {
    const uint32_t peer = fold.rank(place ^ (1u << k));
    send(out, peer, s.bytes);
    receive(out, peer, out.reduced = s.bytes);
  };
  folded(fold, rank, s.bytes, s.bytes, step, at, out);
}

void reduce_scatter_halving(const Schedule& s, uint32_t rank, Cursor& at, Round& out) {
  const Fold fold(s.ranks);
  const Blocks blocks = Blocks::cut(s.bytes, s.ranks);
  const auto step = [&](uint32_t place, uint32_t k) {
    const uint32_t half = fold.power >> (k + 1);
    const uint32_t mine = place & ~(half - 1), theirs = mine ^ half;
    const uint32_t peer = fold.rank(place ^ half);
    send(out, peer, blocks.range(fold.first(theirs), fold.first(theirs + half)));
    out.reduced = blocks.range(fold.first(mine), fold.first(mine + half));
    receive(out, peer, out.reduced);
  };
  const uint32_t even = rank & ~1u;
  folded(fold, rank, s.bytes, blocks(even), step, at, out);
}

// Recursive doubling; where ranks are no power of two, Bruck's algorithm, as many rounds as the
// next one has.
void all_gather_doubling(const Schedule& s, uint32_t rank, uint32_t k, Round& out) {
  const uint32_t n = s.ranks, distance = 1u << k;
  if (std::has_single_bit(n)) {
    send(out, rank ^ distance, s.bytes * distance);
    return receive(out, rank ^ distance, s.bytes * distance);
  }
  const uint64_t count = std::min(distance, n - distance);
  send(out, wrap(rank + n - distance, n), s.bytes * count);
  receive(out, wrap(rank + distance, n), s.bytes * count);
}

// A chain away from the root (or, turned round, to it) that passes on pieces: a rank sends a piece
// while it receives the next.
void chain(const Schedule& s, uint32_t place, bool reduce, Cursor& at, Round& out) {
  const uint64_t pieces = s.bytes / kChainSegment + (s.bytes % kChainSegment > 0 ? 1 : 0);
  const auto count = static_cast<uint32_t>(std::clamp<uint64_t>(pieces, 1, 1u << 28));
  const Blocks blocks = Blocks::cut(s.bytes, count);
  const uint32_t last = s.ranks - 1;
  const bool takes = place != (reduce ? last : 0), gives = place != (reduce ? 0 : last);
  const uint32_t lag = takes && gives ? 1 : 0;
  if (!at.within(count + lag)) return;
  const uint32_t k = at.k();
  if (takes && k < count) {
    receive(out, reduce ? place + 1 : place - 1, blocks(k));
    if (reduce) out.reduced = blocks(k);
  }
  if (gives && k >= lag) send(out, reduce ? place - 1 : place + 1, blocks(k - lag));
}

void ring(const Schedule& s, uint32_t rank, Cursor& at, Round& out) {
  const uint32_t n = s.ranks;
  switch (s.collective) {
    case Collective::kAllGather:
      if (at.within(n - 1)) {
        ring_all_gather(n, rank, at.k(), [&](uint32_t) { return s.bytes; }, out);
      }
      return;
    case Collective::kBroadcast:
    case Collective::kReduce:
      chain(s, wrap(rank + n - s.root, n), s.collective == Collective::kReduce, at, out);
      return relabel(out, [&](uint32_t place) { return wrap(place + s.root, n); });
    default: {
      const Blocks blocks = Blocks::cut(s.bytes, n);
      if (at.within(n - 1)) return ring_reduce_scatter(n, rank, at.k(), blocks, out);
      if (s.collective == Collective::kAllReduce && at.within(n - 1)) {
        ring_all_gather(n, rank, at.k(), blocks, out);
      }
    }
  }
}

void recursive_doubling(const Schedule& s, uint32_t rank, Cursor& at, Round& out) {
  switch (s.collective) {
    case Collective::kAllReduce:
      return all_reduce_doubling(s, rank, at, out);
    case Collective::kReduceScatter:
      return reduce_scatter_halving(s, rank, at, out);
    case Collective::kAllGather:
      if (at.within(doublings(s.ranks))) all_gather_doubling(s, rank, at.k(), out);
      return;
    default:
      if (at.within(doublings(s.ranks))) dissemination(s.ranks, rank, at.k(), out);
  }
}

void binomial_tree(const Schedule& s, uint32_t rank, Cursor& at, Round& out) {
  const uint32_t n = s.ranks;
  const bool both = s.collective == Collective::kAllReduce || s.collective == Collective::kBarrier;
  const uint32_t root = both ? 0 : s.root, place = wrap(rank + n - root, n);
  const Blocks blocks = Blocks::cut(s.bytes, n);
  const auto size = [&](uint32_t begin, uint32_t count) -> uint64_t {
    if (s.collective == Collective::kGather) return s.bytes * count;
    if (s.collective == Collective::kScatter) return blocks.around(wrap(begin + root, n), count, n);
    return s.collective == Collective::kBarrier ? 0 : s.bytes;
  };
  const bool up =
      both || s.collective == Collective::kReduce || s.collective == Collective::kGather;
  const bool reduce = s.collective == Collective::kReduce || s.collective == Collective::kAllReduce;
  const uint32_t rounds = tree_rounds(n, place);
  if (up && at.within(rounds)) {
    tree_up(n, place, at.k(), size, reduce, out);
  } else if ((both || !up) && at.within(rounds)) {
    tree_down(n, place, at.k(), size, out);
  }
  relabel(out, [&](uint32_t member) { return wrap(member + root, n); });
}

void pairwise(const Schedule& s, uint32_t rank, Cursor& at, Round& out) {
  const uint32_t n = s.ranks;
  if (!at.within(n - 1)) return;
  const uint32_t to = wrap(rank + at.k() + 1, n), from = wrap(rank + n - at.k() - 1, n);
  const Blocks blocks = Blocks::cut(s.bytes, n);
  const uint64_t sent = share(s, blocks, rank, to), received = share(s, blocks, from, rank);
  if (s.sizes.empty()) {
    send(out, to, sent);
    receive(out, from, received);
  } else {
    send_some(out, to, sent);
    receive_some(out, from, received);
  }
  if (s.collective == Collective::kReduceScatter) out.reduced = received;
}

void direct(const Schedule& s, uint32_t rank, Cursor& at, Round& out) {
  if (!at.within(1)) return;
  const uint32_t n = s.ranks;
  const Blocks blocks = Blocks::cut(s.bytes, n);
  const bool root = rank == s.root;
  switch (s.collective) {
    case Collective::kBroadcast:
    case Collective::kScatter: {
      const auto size = [&](uint32_t to) {
        return s.collective == Collective::kScatter ? blocks(to) : s.bytes;
      };
      if (!root) return receive(out, s.root, size(rank));
      return everybody(n, rank, [&](uint32_t to, uint32_t) { send(out, to, size(to)); });
    }
    case Collective::kReduce:
    case Collective::kGather:
      if (!root) return send(out, s.root, s.bytes);
      if (s.collective == Collective::kReduce) out.reduced = s.bytes * (n - 1);
      return everybody(n, rank, [&](uint32_t, uint32_t from) { receive(out, from, s.bytes); });
    case Collective::kAllToAll:
    case Collective::kReduceScatter: {
      if (s.collective == Collective::kReduceScatter) out.reduced = blocks(rank) * (n - 1);
      if (!s.sizes.empty()) {
        return everybody(n, rank, [&](uint32_t to, uint32_t from) {
          send_some(out, to, share(s, blocks, rank, to));
          receive_some(out, from, share(s, blocks, from, rank));
        });
      }
      return everybody(n, rank, [&](uint32_t to, uint32_t from) {
        send(out, to, blocks(to));
        receive(out, from, blocks(rank));
      });
    }
    default: {
      const uint64_t bytes = s.collective == Collective::kBarrier ? 0 : s.bytes;
      if (s.collective == Collective::kAllReduce) out.reduced = bytes * (n - 1);
      return everybody(n, rank, [&](uint32_t to, uint32_t from) {
        send(out, to, bytes);
        receive(out, from, bytes);
      });
    }
  }
}

// Writes the round that `at` stands on; counts all the rounds if it stands on none.
void walk(const Schedule& s, uint32_t rank, Cursor& at, Round& out) {
  out.sends.clear();
  out.recvs.clear();
  out.reduced = 0;
  if (s.ranks <= 1) return;
  switch (s.algorithm) {
    case Algorithm::kRing:
      return ring(s, rank, at, out);
    case Algorithm::kRecursiveDoubling:
      return recursive_doubling(s, rank, at, out);
    case Algorithm::kBinomialTree:
      return binomial_tree(s, rank, at, out);
    case Algorithm::kDirect:
      return direct(s, rank, at, out);
    case Algorithm::kPairwise:
      return pairwise(s, rank, at, out);
    case Algorithm::kHierarchical:
      if (s.islands == nullptr) throw std::logic_error("a hierarchy without islands");
      if (s.collective == Collective::kAllToAll && !s.islands->equal()) {
        return direct(s, rank, at, out);
      }
      return hierarchical_rounds(s, rank, at, out);
    case Algorithm::kGlooRing:
      return gloo_rounds(s, rank, at, out);
    case Algorithm::kGlooTree:
      return gloo_tree(s, rank, at, out);
    case Algorithm::kAuto:
      break;
  }
  throw std::logic_error("a schedule without an algorithm");
}

}  // namespace

bool supports(Collective collective, Algorithm algorithm) {
  const auto row = static_cast<uint32_t>(collective), column = static_cast<uint32_t>(algorithm);
  return row < kCollectives && column < kAlgorithms && (kSupported[row] >> column & 1u) != 0;
}

uint32_t Schedule::rounds(uint32_t rank) const {
  Round unused;
  Cursor at(UINT32_MAX);
  walk(*this, rank, at, unused);
  return at.total();
}

void Schedule::round(uint32_t rank, uint32_t k, Round& out) const {
  Cursor at(k);
  walk(*this, rank, at, out);
}

uint32_t Schedule::depth() const { return algorithm == Algorithm::kGlooRing ? 2 : 1; }

const char* name_of(Collective collective) {
  constexpr const char* kNames[kCollectives] = {"all_reduce", "all_gather", "reduce_scatter",
                                                "broadcast",  "reduce",     "gather",
                                                "scatter",    "all_to_all", "barrier"};
  const auto index = static_cast<uint32_t>(collective);
  return index < kCollectives ? kNames[index] : "unknown";
}

const char* name_of(Algorithm algorithm) {
  constexpr const char* kNames[kAlgorithms] = {"auto",          "ring",      "recursive_doubling",
                                               "binomial_tree", "direct",    "pairwise",
                                               "hierarchical",  "gloo_ring", "gloo_tree"};
  const auto index = static_cast<uint32_t>(algorithm);
  return index < kAlgorithms ? kNames[index] : "unknown";
}

}  // namespace leeboard::sim

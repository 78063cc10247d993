// Hierarchical schedules. Islands of one size: every rank talks across islands, to those that have
// its place on theirs (all_reduce, all_gather, reduce_scatter, all_to_all). Else, and for the
// others, one leader an island does, the root on its own.
#include <unordered_map>

#include "collective_rounds.h"

namespace leeboard::sim {
namespace {

uint32_t below(std::span<const uint32_t> ranks, uint32_t bound) {
  return static_cast<uint32_t>(std::lower_bound(ranks.begin(), ranks.end(), bound) - ranks.begin());
}

// A rank's view: its island, and the leaders. `blocks` cuts the tensor into a block a rank.
struct View {
  const Islands& islands;
  Blocks blocks;
  uint32_t root, root_island, island, rank;
  std::span<const uint32_t> members;

  View(const Schedule& s, uint32_t me, bool rooted)
      : islands(*s.islands),
        blocks(Blocks::cut(s.bytes, s.ranks)),
        root(rooted ? s.root : islands.members(0)[0]),
        root_island(islands.island(root)),
        island(islands.island(me)),
        rank(me),
        members(islands.members(island)) {}
  uint32_t leader(uint32_t of) const { return of == root_island ? root : islands.members(of)[0]; }
  bool leads() const { return leader(island) == rank; }
  // Blocks of ranks, which are ascending: as a rank's block is, so is the place's.
  Blocks of(std::span<const uint32_t> ranks) const {
    return {blocks.each, below(ranks, blocks.extra)};
  }
  // All the blocks of some ranks together.
  uint64_t sum(std::span<const uint32_t> ranks) const {
    return of(ranks).before(static_cast<uint32_t>(ranks.size()));
  }
};

// The tree of an island, its leader on top.
template <class Size>
void within_up(const View& view, Size size, bool reduce, Cursor& at, Round& out) {
  const auto n = static_cast<uint32_t>(view.members.size());
  const uint32_t top = view.islands.index(view.leader(view.island));
  const uint32_t place = wrap(view.islands.index(view.rank) + n - top, n);
  if (!at.within(tree_rounds(n, place))) return;
  tree_up(n, place, at.k(), size, reduce, out);
  relabel(out, [&](uint32_t v) { return view.members[wrap(v + top, n)]; });
}

template <class Size>
void within_down(const View& view, Size size, Cursor& at, Round& out) {
  const auto n = static_cast<uint32_t>(view.members.size());
  const uint32_t top = view.islands.index(view.leader(view.island));
  const uint32_t place = wrap(view.islands.index(view.rank) + n - top, n);
  if (!at.within(tree_rounds(n, place))) return;
  const auto turned = [&](uint32_t begin, uint32_t count) {
    return size(wrap(begin + top, n), count);
  };
  tree_down(n, place, at.k(), turned, out);
  relabel(out, [&](uint32_t v) { return view.members[wrap(v + top, n)]; });
}

// The tree of the leaders, the root's island on top.
template <class Step>
void across(const View& view, Step step, Cursor& at, Round& out) {
  const uint32_t n = view.islands.count();
  const uint32_t place = wrap(view.island + n - view.root_island, n);
  if (!view.leads() || !at.within(tree_rounds(n, place))) return;
  step(n, place);
  relabel(out, [&](uint32_t v) { return view.leader(wrap(v + view.root_island, n)); });
}

// A ring's round among the leaders.
template <class Step>
void across_ring(const View& view, Step step, Cursor& at, Round& out) {
  const uint32_t n = view.islands.count();
  if (!view.leads() || !at.within(n - 1)) return;
  step(n, view.island);
  relabel(out, [&](uint32_t island) { return view.leader(island); });
}

void one_to_all(const Schedule& s, const View& view, Cursor& at, Round& out) {
  const auto whole = [&](uint32_t, uint32_t) { return s.bytes; };
  if (s.collective == Collective::kBroadcast) {
    across(view, [&](uint32_t n, uint32_t v) { tree_down(n, v, at.k(), whole, out); }, at, out);
    return within_down(view, whole, at, out);
  }
  const uint32_t n = view.islands.count();
  if (n > 1 && view.leads() && at.within(1)) {
    if (view.rank != view.root) return receive(out, view.root, view.sum(view.members));
    return everybody(n, view.island, [&](uint32_t to, uint32_t) {
      send(out, view.leader(to), view.sum(view.islands.members(to)));
    });
  }
  const Blocks blocks = view.of(view.members);
  const auto some = [&](uint32_t begin, uint32_t count) {
    return blocks.around(begin, count, static_cast<uint32_t>(view.members.size()));
  };
  within_down(view, some, at, out);
}

void all_to_one(const Schedule& s, const View& view, Cursor& at, Round& out) {
  const bool reduce = s.collective == Collective::kReduce;
  const auto size = [&](uint32_t, uint32_t count) { return reduce ? s.bytes : s.bytes * count; };
  within_up(view, size, reduce, at, out);
  if (reduce) {
    return across(
        view, [&](uint32_t n, uint32_t v) { tree_up(n, v, at.k(), size, true, out); }, at, out);
  }
  const uint32_t n = view.islands.count();
  if (n == 1 || !view.leads() || !at.within(1)) return;
  if (view.rank != view.root) return send(out, view.root, s.bytes * view.members.size());
  everybody(n, view.island, [&](uint32_t, uint32_t from) {
    receive(out, view.leader(from), s.bytes * view.islands.size(from));
  });
}

void barrier(const View& view, Cursor& at, Round& out) {
  const auto nothing = [](uint32_t, uint32_t) { return uint64_t{0}; };
  const uint32_t n = view.islands.count();
  within_up(view, nothing, false, at, out);
  if (view.leads() && at.within(doublings(n))) {
    dissemination(n, view.island, at.k(), out);
    relabel(out, [&](uint32_t island) { return view.leader(island); });
  }
  within_down(view, nothing, at, out);
}

void by_leaders(const Schedule& s, const View& view, Cursor& at, Round& out) {
  const auto whole = [&](uint32_t, uint32_t) { return s.bytes; };
  switch (s.collective) {
    case Collective::kAllReduce: {
      within_up(view, whole, true, at, out);
      const Blocks blocks = Blocks::cut(s.bytes, view.islands.count());
      across_ring(
          view, [&](uint32_t n, uint32_t i) { ring_reduce_scatter(n, i, at.k(), blocks, out); }, at,
          out);
      across_ring(
          view, [&](uint32_t n, uint32_t i) { ring_all_gather(n, i, at.k(), blocks, out); }, at,
          out);
      return within_down(view, whole, at, out);
    }
    case Collective::kReduceScatter: {
      within_up(view, whole, true, at, out);
      const auto sum = [&](uint32_t island) { return view.sum(view.islands.members(island)); };
      across_ring(
          view, [&](uint32_t n, uint32_t i) { ring_reduce_scatter(n, i, at.k(), sum, out); }, at,
          out);
      const Blocks blocks = view.of(view.members);
      const auto range = [&](uint32_t begin, uint32_t count) {
        return blocks.range(begin, begin + count);
      };
      return within_down(view, range, at, out);
    }
    default: {
      const auto some = [&](uint32_t, uint32_t count) { return s.bytes * count; };
      within_up(view, some, false, at, out);
      const auto all = [&](uint32_t island) { return s.bytes * view.islands.size(island); };
      across_ring(
          view, [&](uint32_t n, uint32_t i) { ring_all_gather(n, i, at.k(), all, out); }, at, out);
      return within_down(view, [&](uint32_t, uint32_t) { return s.bytes * s.ranks; }, at, out);
    }
  }
}

// First to whom has the target's place on my island, then across.
void all_to_all(const Schedule& s, const View& view, Cursor& at, Round& out) {
  const auto index = view.islands.index(view.rank);
  const auto column = view.islands.column(index);
  const auto m = static_cast<uint32_t>(view.members.size()), n = view.islands.count();
  const auto sum = [&](std::span<const uint32_t> sources, std::span<const uint32_t> targets) {
    if (s.sizes.empty()) return sources.size() * view.sum(targets);
    uint64_t bytes = 0;
    for (const uint32_t source : sources) {
      for (const uint32_t target : targets) bytes += share(s, view.blocks, source, target);
    }
    return bytes;
  };
  const auto trade = [&](uint32_t to, uint64_t sent, uint32_t from, uint64_t received) {
    if (sent > 0 || s.sizes.empty()) send(out, to, sent);
    if (received > 0 || s.sizes.empty()) receive(out, from, received);
  };
  const std::span<const uint32_t> me(&view.rank, 1);
  if (m > 1 && at.within(1)) {
    return everybody(m, index, [&](uint32_t to, uint32_t from) {
      trade(view.members[to], sum(me, view.islands.column(to)), view.members[from],
            sum(view.members.subspan(from, 1), column));
    });
  }
  if (n > 1 && at.within(1)) {
    everybody(n, view.islands.row(view.rank), [&](uint32_t to, uint32_t from) {
      const auto there = view.islands.members(view.islands.island(column[from]));
      trade(column[to], sum(view.members, column.subspan(to, 1)), column[from], sum(there, me));
    });
  }
}

void by_columns(const Schedule& s, const View& view, Cursor& at, Round& out) {
  const Islands& islands = view.islands;
  const uint32_t index = islands.index(view.rank), row = islands.row(view.rank);
  const auto column = islands.column(index);
  const auto m = static_cast<uint32_t>(view.members.size()), n = islands.count();
  switch (s.collective) {
    case Collective::kAllReduce: {
      const Blocks parts = Blocks::cut(s.bytes, m), blocks = Blocks::cut(parts(index), n);
      if (at.within(m - 1)) {
        ring_reduce_scatter(m, index, at.k(), parts, out);
        return relabel(out, view.members);
      }
      if (at.within(n - 1)) {
        ring_reduce_scatter(n, row, at.k(), blocks, out);
        return relabel(out, column);
      }
      if (at.within(n - 1)) {
        ring_all_gather(n, row, at.k(), blocks, out);
        return relabel(out, column);
      }
      if (!at.within(m - 1)) return;
      ring_all_gather(m, index, at.k(), parts, out);
      return relabel(out, view.members);
    }
    case Collective::kReduceScatter: {
      if (at.within(m - 1)) {
        const auto sum = [&](uint32_t place) { return view.sum(islands.column(place)); };
        ring_reduce_scatter(m, index, at.k(), sum, out);
        return relabel(out, view.members);
      }
      if (!at.within(n - 1)) return;
      ring_reduce_scatter(n, row, at.k(), view.of(column), out);
      return relabel(out, column);
    }
    default: {
      if (at.within(n - 1)) {
        ring_all_gather(n, row, at.k(), [&](uint32_t) { return s.bytes; }, out);
        return relabel(out, column);
      }
      if (!at.within(m - 1)) return;
      ring_all_gather(m, index, at.k(), [&](uint32_t) { return s.bytes * n; }, out);
      return relabel(out, view.members);
    }
  }
}

}  // namespace

Islands::Islands(std::span<const uint32_t> island_of, uint32_t ranks)
    : island_(ranks, 0), index_(ranks), begin_(1, 0), members_(ranks), row_(ranks) {
  std::vector<uint32_t> sizes;
  std::unordered_map<uint32_t, uint32_t> numbers;
  for (uint32_t r = 0; r < ranks; ++r) {
    const uint32_t name = island_of.empty() ? 0 : island_of[r];
    island_[r] = numbers.try_emplace(name, static_cast<uint32_t>(sizes.size())).first->second;
    if (island_[r] == sizes.size()) sizes.push_back(0);
    index_[r] = sizes[island_[r]]++;
  }
  for (const uint32_t size : sizes) begin_.push_back(begin_.back() + size);
  for (uint32_t r = 0; r < ranks; ++r) members_[begin_[island_[r]] + index_[r]] = r;
  if (!std::all_of(sizes.begin(), sizes.end(), [&](uint32_t size) { return size == sizes[0]; })) {
    return;
  }
  columns_.resize(ranks);
  std::vector<uint32_t> rows(sizes.empty() ? 0 : sizes[0], 0);
  for (uint32_t r = 0; r < ranks; ++r) {
    row_[r] = rows[index_[r]]++;
    columns_[uint64_t{index_[r]} * count() + row_[r]] = r;
  }
}

void hierarchical_rounds(const Schedule& s, uint32_t rank, Cursor& at, Round& out) {
  switch (s.collective) {
    case Collective::kBroadcast:
    case Collective::kScatter:
      return one_to_all(s, View(s, rank, true), at, out);
    case Collective::kReduce:
    case Collective::kGather:
      return all_to_one(s, View(s, rank, true), at, out);
    case Collective::kBarrier:
      return barrier(View(s, rank, false), at, out);
    case Collective::kAllToAll:
      return all_to_all(s, View(s, rank, false), at, out);
    default:
      break;
  }
  const View view(s, rank, false);
  if (view.islands.equal()) return by_columns(s, view, at, out);
  by_leaders(s, view, at, out);
}

}  // namespace leeboard::sim

// Grouped-query attention under a structured pattern.
//
// Phases of units that any thread may take: keys and values are packed; blocks of query rows attend
// (see gqa_forward.h). TopU first measures all rows against the sample, then chooses and writes the
// mean, and lets the chosen rows attend to all keys. What a unit computes depends on shapes alone.
#include "gqa_top_u.h"
#include "level.h"
#include "team.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

// A thread's memory: a block of rows, and the queries that a head keeps.
struct Member {
  BlockRows* block;
  float* value;
  int64_t* index;
};

template <class T>
LB_INLINE Member member_memory(const SparseGqaForward& args, Memory& memory) {
  int64_t most = 0;
  for (int64_t s = 0; args.sample != nullptr && s < args.op.segment_count; ++s) {
    most = args.counts[s] > most ? args.counts[s] : most;
  }
  Member member{};
  member.block = block_rows<kPairs<T>>(args.op.d, args.longest, memory);
  member.value = memory.take(most);
  member.index = memory.take<int64_t>(most);
  return member;
}

// An item: its packed keys, then what TopU adds.
template <class T>
struct Item {
  LB_INLINE Item(const SparseGqaForward& args, const GqaItem& item)
      : segment(args.op.segments[item.segment]),
        heads(args.op.heads + args.op.head_offsets[item.head]),
        count(args.op.head_offsets[item.head + 1] - args.op.head_offsets[item.head]) {
    Memory memory{item.memory};
    packed = packed_keys<T>(args.op, item.segment, item.head, memory);
    if (args.sample != nullptr) sample = packed_sample<T>(args, item.segment, item.head, memory);
  }
  const Segment& segment;
  const int64_t* heads;  // the active ones
  int64_t count;
  PackedKeys packed;
  PackedSample sample{};
};

// The rows of the heads of a group that take no part.
template <class T>
void clear_inactive(const SparseGqaForward& args, const GqaItem& item, const Item<T>& of) {
  const SparseGqa& op = args.op;
  int64_t next = 0;
  for (int64_t head = item.head * op.group; head < (item.head + 1) * op.group; ++head) {
    if (next < of.count && of.heads[next] == head) {
      ++next;
      continue;
    }
    for (int64_t i = 0; i < of.segment.queries; ++i) {
      std::memset(row_at<T>(args.out, of.segment.batch, head, of.segment.query + i), 0,
                  static_cast<size_t>(op.d) * sizeof(T));
      if (args.lse != nullptr) {
        args.lse[(of.segment.batch * args.query_heads + head) * args.queries + of.segment.query +
                 i] = -INFINITY;
      }
    }
  }
}

template <class T>
void pack_unit(const SparseGqaForward& args, const GqaUnit& unit) {
  const GqaItem& item = args.items[unit.item];
  const Item<T> of(args, item);
  if (unit.first == 0) clear_inactive<T>(args, item, of);
  if (of.count == 0) return;
  if (unit.first == 0 && args.sample != nullptr) {
    pack_sample<T>(args, item.segment, item.head, of.sample);
  }
  const int64_t first = unit.first / kPanel;
  pack_panels<T>(args.op, of.segment, item.head, first, panels_of(unit.first + unit.count) - first,
                 of.packed);
}

template <class T>
void attend_unit(const SparseGqaForward& args, const GqaUnit& unit, BlockRows& block) {
  const Item<T> of(args, args.items[unit.item]);
  const SparseGqa& op = args.op;
  load_block<T>(
      op, of.segment, unit.count, query_scale(op),
      [&](int64_t row) {
        const int64_t token = (unit.first + row) / of.count;
        const int64_t* offset = of.segment.offsets + token;
        return RowPlace{of.heads[(unit.first + row) % of.count], token,
                        of.segment.spans + 2 * offset[0], of.segment.spans + 2 * offset[1]};
      },
      block);
  attend_block<T>(op, of.packed, block);
  write_block<T>(args, of.segment, block, of.packed.stride);
}

template <class T>
void measure_unit(const SparseGqaForward& args, const GqaUnit& unit, BlockRows& block) {
  const Item<T> of(args, args.items[unit.item]);
  load_block<T>(
      args.op, of.segment, unit.count, args.op.scale,
      [&](int64_t row) {
        return RowPlace{of.heads[(unit.first + row) % of.count], (unit.first + row) / of.count,
                        nullptr, nullptr};
      },
      block);
  measure_block<T>(args.op, of.sample, of.segment.queries, unit.first, of.count, block);
}

template <class T>
void attend_chosen(const SparseGqaForward& args, const GqaUnit& unit, BlockRows& block) {
  const GqaItem& item = args.items[unit.item];
  const Item<T> of(args, item);
  const SparseGqa& op = args.op;
  const int64_t span[2] = {0, of.segment.keys};
  load_block<T>(
      op, of.segment, unit.count, query_scale(op),
      [&](int64_t row) {
        const int64_t head = of.heads[(unit.first + row) % of.count];
        const int64_t* chosen =
            args.chosen + (item.segment * args.query_heads + head) * args.chosen_most;
        return RowPlace{head, chosen[(unit.first + row) / of.count], span, span + 2};
      },
      block);
  attend_block<T>(op, of.packed, block);
  write_block<T>(args, of.segment, block, of.packed.stride);
}

template <class T>
void run_member(const SparseGqaForward& args, Team& team, float* own) {
  Memory memory{own};
  const Member member = member_memory<T>(args, memory);
  BlockRows& block = *member.block;
  auto* counters = static_cast<Counter*>(args.counters);
  share_phase(team, counters[0], args.pack_count,
              [&](int64_t i) { pack_unit<T>(args, args.packs[i]); });
  if (args.sample == nullptr) {
    share_phase(team, counters[1], args.block_count,
                [&](int64_t i) { attend_unit<T>(args, args.blocks[i], block); });
    return;
  }
  share_phase(team, counters[1], args.block_count,
              [&](int64_t i) { measure_unit<T>(args, args.blocks[i], block); });
  share_phase(team, counters[2], args.head_count, [&](int64_t i) {
    const GqaItem& item = args.items[args.heads[i].item];
    const Item<T> of(args, item);
    const int64_t head = args.heads[i].first;
    choose_queries<T>(args, item.segment, of.heads[head], of.sample,
                      of.sample.peaked + head * of.segment.queries, member.value, member.index);
  });
  share_phase(team, counters[3], args.chosen_block_count,
              [&](int64_t i) { attend_chosen<T>(args, args.chosen_blocks[i], block); });
}

}  // namespace

int64_t sparse_gqa_item_floats(const SparseGqaForward& args, int64_t segment, int64_t head) {
  Memory memory{nullptr};
  dispatch_type(args.op.dtype, [&]<class T>(T) {
    packed_keys<T>(args.op, segment, head, memory);
    if (args.sample != nullptr) packed_sample<T>(args, segment, head, memory);
  });
  return memory.used;
}

int64_t sparse_gqa_member_floats(const SparseGqaForward& args) {
  Memory memory{nullptr};
  dispatch_type(args.op.dtype, [&]<class T>(T) { member_memory<T>(args, memory); });
  return memory.used;
}

void sparse_gqa_forward(const SparseGqaForward& args, Team& team, float* memory) {
  dispatch_type(args.op.dtype, [&]<class T>(T) { run_member<T>(args, team, memory); });
}

}  // namespace leeboard::LEEBOARD_LEVEL

// Gradients of grouped-query attention under a structured pattern.
//
// The weights are made anew from the scores and the log-sum-exp, as in flash attention, in float32
// whatever the storage type: p = exp(s - lse), ds = p (grad_out . v - delta), with delta =
// grad_out . out - grad_lse. Three phases, each of units that any thread may take: keys and values
// are packed; chunks of query rows give grad_q and a partial grad_k and grad_v each; the partial
// gradients are summed in the order of the chunks. Chunks depend on shapes alone.
#include "gqa_backward.h"
#include "level.h"
#include "team.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

// An item's memory: packed keys and values, then for each chunk the range of panels that it touched
// and its partial gradients.
struct ItemMemory {
  PackedKeys packed;
  int64_t* ranges;  // [chunks, 2]
  float* partial;   // [chunks, 2, panels * kPanel, stride]
  float* shares;    // see GqaOwnRows
  int64_t floats;
};

LB_INLINE ItemMemory item_memory(float* memory, int64_t d, int64_t keys, int64_t chunks,
                                 int64_t shares) {
  const int64_t panels = panels_of(keys);
  const int64_t padded = panels * kPanel;
  const int64_t rows = padded * packed_stride(d);
  int64_t used = 0;
  auto take = [&](int64_t floats) __attribute__((always_inline)) {
    const int64_t at = used;
    used += whole_line(floats);
    return memory == nullptr ? nullptr : memory + at;
  };
  ItemMemory item{};
  item.packed.panels = panels;
  item.packed.keys = take(padded * d);
  item.packed.values = take(padded * d);
  item.packed.rows = take(rows);
  item.packed.seen = reinterpret_cast<int32_t*>(take(padded));
  item.packed.padded = reinterpret_cast<int32_t*>(take(panels));
  item.ranges = reinterpret_cast<int64_t*>(take(4 * chunks));
  item.partial = take(chunks * 2 * rows);
  item.shares = take(shares);
  item.floats = used;
  return item;
}

LB_INLINE ItemMemory memory_of(const SparseGqa& op, const GqaBackwardItem& item) {
  const Segment& segment = op.segments[item.segment];
  return item_memory(item.memory, op.d, segment.keys, item.chunks, gqa_shares(op, segment));
}

// A thread's memory: a block of rows, and one panel of rows that are being packed.
LB_INLINE int64_t member_memory(float* memory, int64_t d, int64_t keys, BlockRows& block,
                                float*& panel) {
  const int64_t stride = packed_stride(d);
  int64_t used = 0;
  auto take = [&](int64_t floats) __attribute__((always_inline)) {
    const int64_t at = used;
    used += whole_line(floats);
    return memory == nullptr ? nullptr : memory + at;
  };
  block.d = d;
  block.stride = stride;
  block.q = take(kBlockRows * stride);
  block.grad_out = take(kBlockRows * stride);
  block.grad_q = take(kBlockRows * stride);
  block.rest = take(kBlockRows);
  block.power = take(kBlockRows);
  block.delta = take(kBlockRows);
  block.weights = take(kBlockRows * kWeightStride);
  block.slopes = take(kBlockRows * kWeightStride);
  block.token = reinterpret_cast<int64_t*>(take(2 * kBlockRows));
  block.cursor = reinterpret_cast<int64_t*>(take(2 * kBlockRows));
  block.cells = reinterpret_cast<uint8_t*>(take((kStrips * panels_of(keys) + 3) / 4));
  panel = take(kPanel * stride);
  return used;
}

LB_INLINE void clear_floats(float* p, int64_t count) {
  std::memset(p, 0, static_cast<size_t>(count) * sizeof(float));
}

// A row in float32, zeros to the next whole vector.
template <class T>
LB_INLINE void pack_row(const T* from, int64_t d, float* to) {
  for_each_vector(d, [&](int64_t j, int64_t n) { store(to + j, load_n(from + j, n)); });
}

// [kPanel, stride] becomes [d, kPanel].
LB_INLINE void turn_panel(const float* rows, int64_t stride, int64_t d, float* to) {
  for (int64_t j = 0; j < d; ++j) {
#pragma GCC unroll 8
    for (int64_t i = 0; i < kPanel; ++i) to[j * kPanel + i] = rows[i * stride + j];
  }
}

template <class T>
void pack_panels(const SparseGqaBackward& args, const GqaBackwardItem& item, const GqaUnit& unit,
                 float* turned) {
  const SparseGqa& op = args.op;
  const Segment& segment = op.segments[item.segment];
  const int64_t stride = packed_stride(op.d);
  const PackedKeys packed = memory_of(op, item).packed;
  const uint8_t* padding =
      op.padding == nullptr ? nullptr : op.padding + segment.batch * op.padding_batch + segment.key;
  for (int64_t p = unit.first; p < unit.first + unit.count; ++p) {
    float* rows = packed.rows + p * kPanel * stride;
    packed.padded[p] = 0;
    for (int64_t i = 0; i < kPanel; ++i) {
      const int64_t key = p * kPanel + i;
      const bool present = key < segment.keys && (padding == nullptr || padding[key] == 0);
      packed.seen[key] = present ? -1 : 0;
      packed.padded[p] |= present ? 0 : 1;
      if (present) {
        pack_row(row_at<const T>(op.k, segment.batch, item.head, segment.key + key), op.d,
                 rows + i * stride);
        pack_row(row_at<const T>(op.v, segment.batch, item.head, segment.key + key), op.d,
                 turned + i * stride);
      } else {
        clear_floats(rows + i * stride, stride);
        clear_floats(turned + i * stride, stride);
      }
    }
    turn_panel(rows, stride, op.d, packed.keys + p * kPanel * op.d);
    turn_panel(turned, stride, op.d, packed.values + p * kPanel * op.d);
  }
}

// grad_q of the heads of a group that take no part.
template <class T>
void clear_inactive(const SparseGqaBackward& args, const GqaBackwardItem& item) {
  const SparseGqa& op = args.op;
  const Segment& segment = op.segments[item.segment];
  int64_t next = op.head_offsets[item.head];
  for (int64_t head = item.head * op.group; head < (item.head + 1) * op.group; ++head) {
    if (next < op.head_offsets[item.head + 1] && op.heads[next] == head) {
      ++next;
      continue;
    }
    for (int64_t i = 0; i < segment.queries; ++i) {
      T* row = row_at<T>(args.grad_q, segment.batch, head, segment.query + i);
      std::memset(row, 0, static_cast<size_t>(op.d) * sizeof(T));
    }
  }
}

// lse = n ln 2 + rest, power = 2^-n. Where n would leave the powers of float32 the rest is larger.
LB_INLINE void split_lse(float lse, float& rest, float& power) {
  constexpr double kLn2 = 0.6931471805599453;
  constexpr double kMost = 60.0;
  // NaN and infinity stay as they are.
  double n = lse - lse == 0.0f ? lse / kLn2 : 0.0;
  n = n > kMost ? kMost : (n < -kMost ? -kMost : n);
  const auto whole = static_cast<int32_t>(n < 0.0 ? n - 0.5 : n + 0.5);
  rest = static_cast<float>(lse - whole * kLn2);
  const uint32_t bits = static_cast<uint32_t>(127 - whole) << 23;
  std::memcpy(&power, &bits, sizeof power);
}

// Row r of an item: token r / active, head r % active of the group's active ones.
struct ItemRows {
  const Segment* segment;
  const int64_t* heads;
  int64_t active;
};

template <class T>
void load_block(const SparseGqaBackward& args, const ItemRows& item, int64_t begin, int64_t end,
                BlockRows& block) {
  const SparseGqa& op = args.op;
  const Segment& segment = *item.segment;
  block.strips = (end - begin + kStrip - 1) / kStrip;
  for (int64_t i = 0; i < block.strips * kStrip; ++i) {
    float* q = block.q + i * block.stride;
    float* grad_out = block.grad_out + i * block.stride;
    const bool present = begin + i < end;
    const int64_t row = present ? begin + i : end - 1;
    const int64_t token = row / item.active;
    const int64_t head = item.heads[row % item.active];
    const int64_t query = segment.query + token;
    const int64_t at = (segment.batch * args.query_heads + head) * args.queries + query;
    clear_floats(block.grad_q + i * block.stride, block.stride);
    block.token[i] = token;
    block.cursor[i] = segment.offsets[token];
    if (!present || args.lse[at] == -INFINITY) {
      clear_floats(q, block.stride);
      clear_floats(grad_out, block.stride);
      block.rest[i] = INFINITY;
      block.power[i] = 1.0f;
      block.delta[i] = 0.0f;
      continue;
    }
    pack_row(row_at<const T>(op.q, segment.batch, head, query), op.d, q);
    pack_row(row_at<const T>(args.grad_out, segment.batch, head, query), op.d, grad_out);
    const T* out = row_at<const T>(args.out, segment.batch, head, query);
    vf sum = {};
    for_each_vector(op.d, [&](int64_t j, int64_t n) {
      sum = fma(load(grad_out + j), load_n(out + j, n), sum);
    });
    split_lse(args.lse[at], block.rest[i], block.power[i]);
    block.delta[i] = horizontal_sum(sum) - (args.grad_lse == nullptr ? 0.0f : args.grad_lse[at]);
  }
}

template <class T>
void run_chunk(const SparseGqaBackward& args, const GqaBackwardItem& item, int64_t chunk,
               BlockRows& block) {
  const SparseGqa& op = args.op;
  const Segment& segment = op.segments[item.segment];
  const int64_t first_head = op.head_offsets[item.head];
  const ItemRows rows{&segment, op.heads + first_head, op.head_offsets[item.head + 1] - first_head};
  const ItemMemory memory = memory_of(op, item);
  const int64_t stride = block.stride;
  const int64_t begin = chunk * item.chunk_rows;
  const int64_t end = least(begin + item.chunk_rows, segment.queries * rows.active);
  block.offsets = segment.offsets;
  block.spans = segment.spans;
  block.scale = op.scale;
  block.softcap = op.softcap;
  int64_t from = memory.packed.panels;
  int64_t to = 0;
  for (int64_t token = begin / rows.active; token * rows.active < end; ++token) {
    const int64_t spans = segment.offsets[token];
    const int64_t stop = segment.offsets[token + 1];
    if (spans == stop) continue;
    const int64_t close = panels_of(segment.spans[2 * stop - 1]);
    from = least(from, segment.spans[2 * spans] / kPanel);
    to = close > to ? close : to;
  }
  memory.ranges[2 * chunk] = from;
  memory.ranges[2 * chunk + 1] = to;
  const int64_t floats = memory.packed.panels * kPanel * stride;
  float* grad_k = memory.partial + 2 * chunk * floats;
  float* grad_v = grad_k + floats;
  if (from < to) {
    clear_floats(grad_k + from * kPanel * stride, (to - from) * kPanel * stride);
    clear_floats(grad_v + from * kPanel * stride, (to - from) * kPanel * stride);
  }
  for (int64_t row = begin; row < end; row += kBlockRows) {
    const int64_t last = least(row + kBlockRows, end);
    load_block<T>(args, rows, row, last, block);
    if (op.softcap != 0.0f) {
      backward_block<true>(block, memory.packed, grad_k, grad_v);
    } else {
      backward_block<false>(block, memory.packed, grad_k, grad_v);
    }
    if (op.own_count > 0) {
      ttt_attention_rows(op, {.batch = segment.batch,
                              .head = item.head,
                              .query = segment.query,
                              .first = row,
                              .count = last - row,
                              .stride = stride,
                              .q = block.q,
                              .grad_out = block.grad_out,
                              .rest = block.rest,
                              .power = block.power,
                              .delta = block.delta,
                              .grad_q = block.grad_q,
                              .shares = memory.shares,
                              .item_rows = segment.queries * op.group});
    }
    for (int64_t r = row; r < last; ++r) {
      T* to_row = row_at<T>(args.grad_q, segment.batch, rows.heads[r % rows.active],
                            segment.query + r / rows.active);
      const float* sums = block.grad_q + (r - row) * stride;
      for_each_vector(
          op.d, [&](int64_t j, int64_t n) { store_n(to_row + j, load(sums + j) * op.scale, n); });
    }
  }
}

template <class T>
void sum_chunks(const SparseGqaBackward& args, const GqaBackwardItem& item, const GqaUnit& unit) {
  const SparseGqa& op = args.op;
  const Segment& segment = op.segments[item.segment];
  const ItemMemory memory = memory_of(op, item);
  const int64_t stride = packed_stride(op.d);
  const int64_t floats = memory.packed.panels * kPanel * stride;
  for (int64_t key = unit.first; key < unit.first + unit.count; ++key) {
    T* grad_k = row_at<T>(args.grad_k, segment.batch, item.head, segment.key + key);
    T* grad_v = row_at<T>(args.grad_v, segment.batch, item.head, segment.key + key);
    for_each_vector(op.d, [&](int64_t j, int64_t n) {
      vf sum_k = {};
      vf sum_v = {};
      for (int64_t c = 0; c < item.chunks; ++c) {
        const int64_t panel = key / kPanel;
        if (panel < memory.ranges[2 * c] || panel >= memory.ranges[2 * c + 1]) continue;
        const float* partial = memory.partial + 2 * c * floats + key * stride + j;
        sum_k += load(partial);
        sum_v += load(partial + floats);
      }
      store_n(grad_k + j, sum_k * op.scale, n);
      store_n(grad_v + j, sum_v, n);
    });
  }
}

template <class T>
void run_member(const SparseGqaBackward& args, Team& team, float* memory) {
  BlockRows block{};
  float* panel = nullptr;
  member_memory(memory, args.op.d, args.longest, block, panel);
  auto* counters = reinterpret_cast<Counter*>(args.counters);
  share_phase(team, counters[0], args.pack_count, [&](int64_t i) {
    const GqaBackwardItem& item = args.items[args.packs[i].item];
    if (args.packs[i].first == 0) clear_inactive<T>(args, item);
    pack_panels<T>(args, item, args.packs[i], panel);
  });
  share_phase(team, counters[1], args.chunk_count, [&](int64_t i) {
    run_chunk<T>(args, args.items[args.chunks[i].item], args.chunks[i].first, block);
  });
  share_phase(team, counters[2], args.sum_count,
              [&](int64_t i) { sum_chunks<T>(args, args.items[args.sums[i].item], args.sums[i]); });
  if (args.own_count > 0) {
    share_phase(team, counters[3], args.own_count, [&](int64_t i) {
      const GqaBackwardItem& item = args.items[args.owns[i].item];
      ttt_attention_grad_own(args, args.owns[i], memory_of(args.op, item).shares);
    });
  }
}

}  // namespace

int64_t sparse_gqa_backward_item_floats(const SparseGqa& op, int64_t segment, int64_t chunks) {
  const Segment& of = op.segments[segment];
  return item_memory(nullptr, op.d, of.keys, chunks, gqa_shares(op, of)).floats;
}

int64_t sparse_gqa_backward_member_floats(int64_t d, int64_t keys) {
  BlockRows block{};
  float* panel = nullptr;
  return member_memory(nullptr, d, keys, block, panel);
}

void sparse_gqa_backward(const SparseGqaBackward& args, Team& team, float* memory) {
  dispatch_type(args.op.dtype, [&]<class T>(T) { run_member<T>(args, team, memory); });
}

}  // namespace leeboard::LEEBOARD_LEVEL

#include <algorithm>

#include "bindings.h"
#include "parallel.h"
#include "sparse_view.h"

namespace leeboard {
namespace {

// Chunks that a whole call is cut into where its rows allow it, whatever the number of threads.
constexpr int64_t kChunks = 32;
// Blocks of rows that a chunk holds at least: they pay for its partial gradients.
constexpr int64_t kChunkBlocks = 4;
// Panels, and keys, that a thread takes at a time.
constexpr int64_t kPackPanels = 8;
constexpr int64_t kSumKeys = 64;
// Rows whose own keys a thread takes at a time.
constexpr int64_t kOwnRows = 64;
// Items are worked on in turns whose memory is at most this, or one item's: of L keys and c <=
// kChunks chunks about (12 + 8 c) L d bytes, with d rounded up to whole vectors.
constexpr int64_t kScratchFloats = int64_t{32} << 20;

// The items of one turn and their units.
struct Turn {
  std::vector<GqaBackwardItem> items;
  std::vector<GqaUnit> packs;
  std::vector<GqaUnit> chunks;
  std::vector<GqaUnit> sums;
  std::vector<GqaUnit> owns;
  int64_t floats = 0;
  int64_t bytes = 0;
};

void add_units(std::vector<GqaUnit>& units, int64_t item, int64_t count, int64_t step) {
  for (int64_t i = 0; i < count; i += step) {
    units.push_back({item, i, std::min(step, count - i)});
  }
}

void run_turn(const KernelTable& kernels, SparseGqaBackward args, Turn& turn) {
  if (turn.items.empty()) return;
  const AlignedFloats memory(turn.floats);
  float* next = memory.data;
  for (GqaBackwardItem& item : turn.items) {
    item.memory = next;
    next += kernels.sparse_gqa_backward_item_floats(args.op, item.segment, item.chunks);
  }
  args.items = turn.items.data();
  args.packs = turn.packs.data();
  args.pack_count = static_cast<int64_t>(turn.packs.size());
  args.chunks = turn.chunks.data();
  args.chunk_count = static_cast<int64_t>(turn.chunks.size());
  args.sums = turn.sums.data();
  args.sum_count = static_cast<int64_t>(turn.sums.size());
  args.owns = turn.owns.data();
  args.own_count = static_cast<int64_t>(turn.owns.size());
  alignas(64) char counters[4 * 64] = {};
  args.counters = counters;
  const int64_t member_floats = kernels.sparse_gqa_backward_member_floats(args.op.d, args.longest);
  run_team(turn.bytes, [&](Team& team) {
    const AlignedFloats own(member_floats);
    kernels.sparse_gqa_backward(args, team, own.data);
  });
  turn = Turn{};
}

}  // namespace

void run_sparse_backward(const KernelTable& kernels, SparseGqaBackward args, int64_t most_chunks) {
  const SparseGqa& op = args.op;
  const int64_t items = op.segment_count * op.kv_heads;
  const int64_t block = kernels.gqa_backward_rows;
  for (int64_t s = 0; s < op.segment_count; ++s) {
    args.longest = std::max(args.longest, op.segments[s].keys);
  }
  Turn turn;
  for (int64_t s = 0; s < op.segment_count; ++s) {
    const Segment& segment = op.segments[s];
    for (int64_t head = 0; head < op.kv_heads; ++head) {
      const int64_t rows = segment.queries * (op.head_offsets[head + 1] - op.head_offsets[head]);
      const int64_t blocks = (rows + block - 1) / block;
      const int64_t wanted =
          std::clamp<int64_t>(blocks / kChunkBlocks, 1, (most_chunks - 1) / items + 1);
      const int64_t chunk_rows = (blocks + wanted - 1) / wanted * block;
      const int64_t chunks = rows == 0 ? 0 : (rows + chunk_rows - 1) / chunk_rows;
      const int64_t floats = kernels.sparse_gqa_backward_item_floats(op, s, chunks);
      if (turn.floats + floats > kScratchFloats) run_turn(kernels, args, turn);
      const auto item = static_cast<int64_t>(turn.items.size());
      turn.items.push_back({s, head, chunk_rows, chunks, nullptr});
      const int64_t panels =
          (segment.keys + kernels.gqa_backward_panel - 1) / kernels.gqa_backward_panel;
      // Without active heads nothing of a key is read.
      if (chunks > 0 && panels > 0) {
        add_units(turn.packs, item, panels, kPackPanels);
      } else {
        turn.packs.push_back({item, 0, 0});
      }
      add_units(turn.chunks, item, chunks, 1);
      add_units(turn.sums, item, segment.keys, kSumKeys);
      if (op.own_count > 0) add_units(turn.owns, item, segment.queries, kOwnRows);
      turn.floats += floats;
      // Rows of queries, outputs and their gradients, and of keys, values and theirs.
      turn.bytes += (rows * 4 + segment.keys * 4) * op.d * 4;
    }
  }
  run_turn(kernels, args, turn);
}

void bind_sparse_backward(py::module_& module, const TensorReader& reader) {
  module.def(
      "sparse_gqa_backward",
      [&reader](py::handle grad_out_object, py::handle grad_lse_object, py::handle q_object,
                py::handle k_object, py::handle v_object, py::handle out_object,
                py::handle lse_object, py::handle grad_q_object, py::handle grad_k_object,
                py::handle grad_v_object, py::handle plans, py::handle cu_q, py::handle cu_k,
                py::handle heads, py::handle padding, double scale, double softcap, int level) {
        const auto call = read_sparse_call(reader, q_object, k_object, v_object, plans, cu_q, cu_k,
                                           heads, padding, py::none(), scale, softcap);
        if (!call) return false;
        const SparseGqa& op = call->op;
        const auto grad_out = read_heads(reader, grad_out_object);
        const auto out = read_heads(reader, out_object);
        const auto grad_q = read_heads(reader, grad_q_object);
        const auto grad_k = read_heads(reader, grad_k_object);
        const auto grad_v = read_heads(reader, grad_v_object);
        if (!grad_out || !out || !grad_q || !grad_k || !grad_v) return false;
        for (const auto* t : {&*grad_out, &*out, &*grad_q}) {
          if (t->dtype != op.dtype || !t->is(call->batch, call->query_heads, call->queries, op.d)) {
            return false;
          }
        }
        for (const auto* t : {&*grad_k, &*grad_v}) {
          if (t->dtype != op.dtype || !t->is(call->batch, op.kv_heads, call->keys, op.d)) {
            return false;
          }
        }
        if (!rows_apart(*grad_q) || !rows_apart(*grad_k) || !rows_apart(*grad_v)) return false;
        SparseGqaBackward args{};
        bool fits = true;
        args.lse = read_row_values(reader, lse_object, call->batch, call->query_heads,
                                   call->queries, fits);
        if (!fits) return false;
        if (!grad_lse_object.is_none()) {
          args.grad_lse = read_row_values(reader, grad_lse_object, call->batch, call->query_heads,
                                          call->queries, fits);
          if (!fits) return false;
        }
        args.op = op;
        args.grad_out = grad_out->view;
        args.out = out->view;
        args.grad_q = grad_q->view;
        args.grad_k = grad_k->view;
        args.grad_v = grad_v->view;
        args.query_heads = call->query_heads;
        args.queries = call->queries;
        const KernelTable& kernels = kernels_of(level);
        py::gil_scoped_release nogil;
        run_sparse_backward(kernels, args, kChunks);
        return true;
      },
      py::arg("grad_out"), py::arg("grad_lse").none(true), py::arg("q"), py::arg("k"), py::arg("v"),
      py::arg("out"), py::arg("lse"), py::arg("grad_q"), py::arg("grad_k"), py::arg("grad_v"),
      py::arg("plans"), py::arg("cu_q").none(true), py::arg("cu_k").none(true),
      py::arg("heads").none(true), py::arg("padding").none(true), py::arg("scale"),
      py::arg("softcap"), py::arg("level"));
}

}  // namespace leeboard

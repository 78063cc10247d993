#include <pybind11/stl.h>

#include <algorithm>

#include "bindings.h"
#include "parallel.h"
#include "sparse_view.h"

namespace leeboard {
namespace {

AttentionPlan make_plan(const TensorReader& reader, py::handle offsets_object,
                        py::handle spans_object, int64_t keys) {
  const auto offsets = reader.read(offsets_object);
  const auto spans = reader.read(spans_object);
  if (!offsets || offsets->kind != Kind::kInt64 || offsets->ndim != 1 || offsets->shape[0] < 1 ||
      !is_dense(*offsets)) {
    throw py::value_error("offsets: expected a contiguous int64 tensor [queries + 1]");
  }
  if (!spans || spans->kind != Kind::kInt64 || spans->ndim != 2 || spans->shape[1] != 2 ||
      !is_dense(*spans)) {
    throw py::value_error("spans: expected a contiguous int64 tensor [n, 2]");
  }
  if (keys < 0) throw py::value_error("keys: expected at least 0");
  const auto* first = reinterpret_cast<const int64_t*>(offsets->data);
  const auto* pairs = reinterpret_cast<const int64_t*>(spans->data);
  AttentionPlan plan;
  plan.queries = offsets->shape[0] - 1;
  plan.keys = keys;
  const int64_t count = spans->shape[0];
  if (first[0] != 0 || first[plan.queries] != count) {
    throw py::value_error("offsets: expected to start at 0 and to end at the number of spans");
  }
  for (int64_t i = 0; i < plan.queries; ++i) {
    if (first[i + 1] < first[i] || first[i + 1] > count) {
      throw py::value_error("offsets: expected ascending numbers");
    }
    int64_t last = -1;
    for (int64_t s = first[i]; s < first[i + 1]; ++s) {
      if (pairs[2 * s] <= last || pairs[2 * s + 1] <= pairs[2 * s] || pairs[2 * s + 1] > keys) {
        throw py::value_error("spans: expected ascending, disjoint, non-empty spans of keys");
      }
      last = pairs[2 * s + 1];
    }
  }
  plan.offsets.assign(first, first + plan.queries + 1);
  plan.spans.assign(pairs, pairs + 2 * count);
  return plan;
}

// Items are worked on in turns whose memory is at most this, or one item's: of L keys about 8 L d
// bytes, with d rounded up to whole vectors.
constexpr int64_t kTurnFloats = int64_t{16} << 20;

// The items of one turn and their units.
struct Turn {
  std::vector<GqaItem> items;
  std::vector<int64_t> offsets;  // of each item's memory
  std::vector<GqaUnit> packs;
  std::vector<GqaUnit> blocks;
  std::vector<GqaUnit> heads;
  std::vector<GqaUnit> chosen_blocks;
  int64_t floats = 0;
  int64_t bytes = 0;
};

void add_units(std::vector<GqaUnit>& units, int64_t item, int64_t count, int64_t step) {
  for (int64_t i = 0; i < count; i += step) units.push_back({item, i, std::min(step, count - i)});
}

void run_turn(const KernelTable& kernels, SparseGqaForward args, Turn& turn) {
  if (turn.items.empty()) return;
  const AlignedFloats memory(turn.floats);
  for (size_t i = 0; i < turn.items.size(); ++i) {
    turn.items[i].memory = memory.data + turn.offsets[i];
  }
  auto units = [](const std::vector<GqaUnit>& from, const GqaUnit*& to, int64_t& count) {
    to = from.data();
    count = static_cast<int64_t>(from.size());
  };
  args.items = turn.items.data();
  units(turn.packs, args.packs, args.pack_count);
  units(turn.blocks, args.blocks, args.block_count);
  units(turn.heads, args.heads, args.head_count);
  units(turn.chosen_blocks, args.chosen_blocks, args.chosen_block_count);
  alignas(64) char counters[4 * 64] = {};
  args.counters = counters;
  const int64_t member_floats = kernels.sparse_gqa_member_floats(args);
  run_team(turn.bytes, [&](Team& team) {
    const AlignedFloats own(member_floats);
    kernels.sparse_gqa_forward(args, team, own.data);
  });
  turn = Turn{};
}

// The outputs of a call; false where they do not fit it.
bool read_outputs(const TensorReader& reader, const SparseCall& call, py::handle out_object,
                  py::handle lse_object, SparseGqaForward& args) {
  const auto out = read_heads(reader, out_object);
  if (!out || out->dtype != call.op.dtype ||
      !out->is(call.batch, call.query_heads, call.queries, call.op.d) || !rows_apart(*out)) {
    return false;
  }
  if (!lse_object.is_none()) {
    bool fits = true;
    args.lse =
        read_row_values(reader, lse_object, call.batch, call.query_heads, call.queries, fits);
    if (!fits) return false;
  }
  args.op = call.op;
  args.out = out->view;
  args.query_heads = call.query_heads;
  args.queries = call.queries;
  return true;
}

// What TopU needs besides; false where it does not fit the segments.
bool read_top_u(const TensorReader& reader, const SparseCall& call, py::handle chosen_object,
                py::handle sample_object, py::handle counts_object, SparseGqaForward& args) {
  const auto chosen = reader.read(chosen_object);
  const auto sample = reader.read(sample_object);
  const auto counts = reader.read(counts_object);
  const int64_t segments = call.op.segment_count;
  if (!chosen || !sample || !counts || chosen->kind != Kind::kInt64 ||
      sample->kind != Kind::kInt64 || counts->kind != Kind::kInt64 || chosen->ndim != 3 ||
      chosen->shape[0] != segments || chosen->shape[1] != call.query_heads || !is_dense(*chosen) ||
      sample->ndim != 2 || sample->shape[0] != segments ||
      // The strides of an empty tensor mean nothing.
      (sample->shape[1] > 0 && !is_dense(*sample)) || counts->ndim != 1 ||
      counts->shape[0] != segments || !is_dense(*counts)) {
    return false;
  }
  args.chosen = reinterpret_cast<int64_t*>(chosen->data);
  args.chosen_most = chosen->shape[2];
  args.sample = reinterpret_cast<const int64_t*>(sample->data);
  args.sample_most = sample->shape[1];
  args.counts = reinterpret_cast<const int64_t*>(counts->data);
  // A sample without any column has no address.
  static constexpr int64_t kNone = -1;
  if (args.sample == nullptr) args.sample = &kNone;
  for (int64_t s = 0; s < segments; ++s) {
    const Segment& segment = call.segments[static_cast<size_t>(s)];
    const int64_t* keys = args.sample + s * args.sample_most;
    int64_t sampled = 0;
    while (sampled < args.sample_most && keys[sampled] >= 0) ++sampled;
    for (int64_t i = 0; i < args.sample_most; ++i) {
      if (keys[i] < -1 || keys[i] >= segment.keys || (i >= sampled && keys[i] != -1)) return false;
    }
    const int64_t count = args.counts[s];
    if (count < 0 || count > segment.queries || count > args.chosen_most ||
        (count > 0 && sampled == 0)) {
      return false;
    }
  }
  return true;
}

}  // namespace

void run_sparse_forward(const KernelTable& kernels, SparseGqaForward args) {
  const SparseGqa& op = args.op;
  for (int64_t s = 0; s < op.segment_count; ++s) {
    args.longest = std::max(args.longest, op.segments[s].keys);
  }
  Turn turn;
  for (int64_t s = 0; s < op.segment_count; ++s) {
    const Segment& segment = op.segments[s];
    for (int64_t head = 0; head < op.kv_heads; ++head) {
      const int64_t heads = op.head_offsets[head + 1] - op.head_offsets[head];
      const int64_t floats = heads > 0 ? kernels.sparse_gqa_item_floats(args, s, head) : 0;
      if (turn.floats + floats > kTurnFloats) run_turn(kernels, args, turn);
      const auto item = static_cast<int64_t>(turn.items.size());
      turn.items.push_back({s, head, nullptr});
      turn.offsets.push_back(turn.floats);
      turn.floats += floats;
      // Without active heads nothing of a key is read.
      if (heads > 0 && segment.keys > 0) {
        add_units(turn.packs, item, segment.keys, kGqaPackKeys);
      } else {
        turn.packs.push_back({item, 0, 0});
      }
      add_units(turn.blocks, item, segment.queries * heads, kGqaBlockRows);
      if (args.sample != nullptr) {
        for (int64_t h = 0; h < heads; ++h) turn.heads.push_back({item, h, 1});
        add_units(turn.chosen_blocks, item, args.counts[s] * heads, kGqaBlockRows);
      }
      // Rows of queries and outputs, of keys and values.
      turn.bytes += (segment.queries * heads + segment.keys) * op.d * 8;
    }
  }
  run_turn(kernels, args, turn);
}

void bind_sparse(py::module_& module, const TensorReader& reader) {
  py::class_<AttentionPlan>(module, "AttentionPlan")
      .def(py::init([&reader](py::handle offsets, py::handle spans, int64_t keys) {
             return make_plan(reader, offsets, spans, keys);
           }),
           py::arg("offsets"), py::arg("spans"), py::arg("keys"))
      .def_readonly("queries", &AttentionPlan::queries)
      .def_readonly("keys", &AttentionPlan::keys);
  module.def(
      "sparse_gqa_forward",
      [&reader](py::handle q, py::handle k, py::handle v, py::handle out, py::handle lse,
                py::handle plans, py::handle cu_q, py::handle cu_k, py::handle heads,
                py::handle padding, py::handle sink_logits, double scale, double softcap,
                int level) {
        const auto call = read_sparse_call(reader, q, k, v, plans, cu_q, cu_k, heads, padding,
                                           sink_logits, scale, softcap);
        SparseGqaForward args{};
        if (!call || !read_outputs(reader, *call, out, lse, args)) return false;
        const KernelTable& kernels = kernels_of(level);
        py::gil_scoped_release nogil;
        run_sparse_forward(kernels, args);
        return true;
      },
      py::arg("q"), py::arg("k"), py::arg("v"), py::arg("out"), py::arg("lse").none(true),
      py::arg("plans"), py::arg("cu_q").none(true), py::arg("cu_k").none(true),
      py::arg("heads").none(true), py::arg("padding").none(true), py::arg("sink_logits").none(true),
      py::arg("scale"), py::arg("softcap"), py::arg("level"));
  module.def(
      "sparse_gqa_top_u",
      [&reader](py::handle q, py::handle k, py::handle v, py::handle out, py::handle lse,
                py::handle chosen, py::handle sample, py::handle counts, py::handle cu_q,
                py::handle cu_k, py::handle heads, py::handle padding, py::handle sink_logits,
                double scale, double softcap, int level) {
        const auto call = read_sparse_call(reader, q, k, v, py::none(), cu_q, cu_k, heads, padding,
                                           sink_logits, scale, softcap);
        SparseGqaForward args{};
        if (!call || !read_outputs(reader, *call, out, lse, args) ||
            !read_top_u(reader, *call, chosen, sample, counts, args)) {
          return false;
        }
        const KernelTable& kernels = kernels_of(level);
        py::gil_scoped_release nogil;
        run_sparse_forward(kernels, args);
        return true;
      },
      py::arg("q"), py::arg("k"), py::arg("v"), py::arg("out"), py::arg("lse").none(true),
      py::arg("chosen"), py::arg("sample"), py::arg("counts"), py::arg("cu_q").none(true),
      py::arg("cu_k").none(true), py::arg("heads").none(true), py::arg("padding").none(true),
      py::arg("sink_logits").none(true), py::arg("scale"), py::arg("softcap"), py::arg("level"));
}

}  // namespace leeboard

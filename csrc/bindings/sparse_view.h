// What the bindings of sparse attention share: plans and the arguments of a call.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "heads_view.h"

namespace leeboard {

// The keys that each query row sees, checked when it is made and never changed.
struct AttentionPlan {
  int64_t queries = 0;
  int64_t keys = 0;
  std::vector<int64_t> offsets;  // [queries + 1]
  std::vector<int64_t> spans;    // pairs [begin, end)
};

// The widest head that sparse attention takes.
inline constexpr int64_t kMaxSparseChannels = 256;

// Memory at an address that suits whole vectors, not initialised.
struct AlignedFloats {
  explicit AlignedFloats(int64_t count) : memory(new float[static_cast<size_t>(count + 16)]) {
    const auto address = reinterpret_cast<uintptr_t>(memory.get());
    data = memory.get() + (64 - address % 64) % 64 / sizeof(float);
  }
  std::unique_ptr<float[]> memory;
  float* data;
};

// Arguments that forward and backward share, checked. `op` points into the vectors.
struct SparseCall {
  SparseGqa op{};
  int64_t batch = 0;
  int64_t query_heads = 0;
  int64_t queries = 0;
  int64_t keys = 0;
  std::vector<Segment> segments;
  std::vector<int64_t> head_offsets;
  std::vector<int64_t> heads;
  // Plans stay alive while the GIL is released.
  std::vector<py::object> plans;

  SparseCall() = default;
  SparseCall(SparseCall&&) = default;
};

// Whether no two elements share their memory.
inline bool rows_apart(const HeadsView& t) {
  if (t.batch * t.heads * t.rows == 0) return true;
  std::pair<int64_t, int64_t> dims[] = {
      {t.view.batch, t.batch}, {t.view.head, t.heads}, {t.view.row, t.rows}};
  std::sort(std::begin(dims), std::end(dims));
  int64_t covered = t.d;
  for (const auto& [stride, size] : dims) {
    if (size <= 1) continue;
    if (stride < covered) return false;
    covered += stride * (size - 1);
  }
  return true;
}

// float32 [B, H, N], contiguous.
inline float* read_row_values(const TensorReader& reader, py::handle object, int64_t batch,
                              int64_t heads, int64_t rows, bool& fits) {
  const auto t = reader.read(object);
  // The strides of an empty tensor mean nothing.
  fits = t && t->kind == Kind::kFloat32 && t->ndim == 3 && t->shape[0] == batch &&
         t->shape[1] == heads && t->shape[2] == rows && (batch * heads * rows == 0 || is_dense(*t));
  return fits ? reinterpret_cast<float*>(t->data) : nullptr;
}

// One segment for each plan, whose bounds count the rows of all batches, or one plan for every
// batch. Without plans (None) the rows see what the kernel decides.
inline bool read_segments(const TensorReader& reader, py::handle plans_object, py::handle cu_q,
                          py::handle cu_k, SparseCall& call) {
  if (cu_q.is_none() != cu_k.is_none()) return false;
  std::vector<const AttentionPlan*> plans;
  if (!plans_object.is_none()) {
    if (!py::isinstance<py::sequence>(plans_object)) return false;
    for (py::handle plan : py::reinterpret_borrow<py::sequence>(plans_object)) {
      if (!py::isinstance<AttentionPlan>(plan)) return false;
      call.plans.push_back(py::reinterpret_borrow<py::object>(plan));
      plans.push_back(plan.cast<const AttentionPlan*>());
    }
  }
  auto add = [&](int64_t index, Segment segment) {
    if (!plans_object.is_none()) {
      const AttentionPlan& plan = *plans[static_cast<size_t>(index)];
      if (plan.queries != segment.queries || plan.keys != segment.keys) return false;
      segment.offsets = plan.offsets.data();
      segment.spans = plan.spans.data();
    }
    call.segments.push_back(segment);
    return true;
  };
  if (cu_q.is_none()) {
    if (!plans_object.is_none() && plans.size() != 1) return false;
    for (int64_t b = 0; b < call.batch; ++b) {
      if (!add(0, {b, 0, call.queries, 0, call.keys, nullptr, nullptr})) return false;
    }
    return true;
  }
  const auto rows = reader.read(cu_q);
  const auto keys = reader.read(cu_k);
  if (!rows || !keys || rows->kind != Kind::kInt64 || keys->kind != Kind::kInt64 ||
      rows->ndim != 1 || rows->shape[0] < 1) {
    return false;
  }
  const int64_t count = rows->shape[0] - 1;
  if (!plans_object.is_none() && static_cast<int64_t>(plans.size()) != count) return false;
  const auto* row = static_cast<const int64_t*>(as_vector(*rows, count + 1));
  const auto* key = static_cast<const int64_t*>(as_vector(*keys, count + 1));
  if (row == nullptr || key == nullptr || row[0] != 0 || key[0] != 0 ||
      row[count] != call.batch * call.queries || key[count] != call.batch * call.keys) {
    return false;
  }
  // A segment within one batch: the numbers rise from 0 to the length.
  for (int64_t s = 0; s < count; ++s) {
    if (row[s + 1] < row[s] || key[s + 1] < key[s] || row[s + 1] > row[count] ||
        key[s + 1] > key[count]) {
      return false;
    }
    Segment segment{0, 0, row[s + 1] - row[s], 0, key[s + 1] - key[s], nullptr, nullptr};
    if (segment.queries > 0) {
      segment.batch = row[s] / call.queries;
      segment.query = row[s] % call.queries;
    }
    if (segment.keys > 0) {
      const int64_t batch = key[s] / call.keys;
      if (segment.queries > 0 && segment.batch != batch) return false;
      segment.batch = batch;
      segment.key = key[s] % call.keys;
    }
    if (segment.query + segment.queries > call.queries || segment.key + segment.keys > call.keys ||
        !add(s, segment)) {
      return false;
    }
  }
  return true;
}

// Active query heads, ascending; all of them for None.
inline bool read_active_heads(py::handle object, SparseCall& call) {
  if (object.is_none()) {
    for (int64_t h = 0; h < call.query_heads; ++h) call.heads.push_back(h);
  } else {
    if (!py::isinstance<py::tuple>(object)) return false;
    for (py::handle head : py::reinterpret_borrow<py::tuple>(object)) {
      if (!PyLong_Check(head.ptr())) return false;
      int overflow = 0;
      const int64_t h = PyLong_AsLongLongAndOverflow(head.ptr(), &overflow);
      if (overflow != 0 || h < 0 || h >= call.query_heads ||
          (!call.heads.empty() && h <= call.heads.back())) {
        return false;
      }
      call.heads.push_back(h);
    }
  }
  size_t next = 0;
  call.head_offsets.push_back(0);
  for (int64_t g = 0; g < call.op.kv_heads; ++g) {
    while (next < call.heads.size() && call.heads[next] < (g + 1) * call.op.group) ++next;
    call.head_offsets.push_back(static_cast<int64_t>(next));
  }
  return true;
}

// Attention of a call, cut into turns and run by the team.
void run_sparse_forward(const KernelTable& kernels, SparseGqaForward args);
// At most `most_chunks` parts of a call's rows, but one of each item: a partial gradient of the
// keys is kept for each.
void run_sparse_backward(const KernelTable& kernels, SparseGqaBackward args, int64_t most_chunks);

// Empty for what the kernels do not take.
inline std::optional<SparseCall> read_sparse_call(const TensorReader& reader, py::handle q_object,
                                                  py::handle k_object, py::handle v_object,
                                                  py::handle plans, py::handle cu_q,
                                                  py::handle cu_k, py::handle heads,
                                                  py::handle padding, py::handle sink_logits,
                                                  double scale, double softcap) {
  const auto q = read_heads(reader, q_object);
  const auto k = read_heads(reader, k_object);
  const auto v = read_heads(reader, v_object);
  if (!q || !k || !v || k->dtype != q->dtype || v->dtype != q->dtype || k->heads == 0 ||
      q->heads % k->heads != 0 || q->d < 1 || q->d > kMaxSparseChannels ||
      !k->is(q->batch, k->heads, k->rows, q->d) || !v->is(q->batch, k->heads, k->rows, q->d)) {
    return std::nullopt;
  }
  SparseCall call;
  call.batch = q->batch;
  call.query_heads = q->heads;
  call.queries = q->rows;
  call.keys = k->rows;
  SparseGqa& op = call.op;
  op.dtype = q->dtype;
  op.kv_heads = k->heads;
  op.group = q->heads / k->heads;
  op.d = q->d;
  op.q = q->view;
  op.k = k->view;
  op.v = v->view;
  op.scale = static_cast<float>(scale);
  op.softcap = static_cast<float>(softcap);
  if (!padding.is_none()) {
    const auto t = reader.read(padding);
    if (!t || t->kind != Kind::kBool || t->ndim != 2 || t->shape[0] != call.batch ||
        t->shape[1] != call.keys || (call.keys > 1 && t->strides[1] != 1)) {
      return std::nullopt;
    }
    op.padding = reinterpret_cast<const uint8_t*>(t->data);
    op.padding_batch = t->strides[0];
  }
  if (!sink_logits.is_none()) {
    const auto t = reader.read(sink_logits);
    if (!t || t->kind != Kind::kFloat32) return std::nullopt;
    op.sink_logits = static_cast<const float*>(as_vector(*t, call.query_heads));
    if (op.sink_logits == nullptr && call.query_heads > 0) return std::nullopt;
  }
  if (!read_segments(reader, plans, cu_q, cu_k, call) || !read_active_heads(heads, call)) {
    return std::nullopt;
  }
  op.segments = call.segments.data();
  op.segment_count = static_cast<int64_t>(call.segments.size());
  op.head_offsets = call.head_offsets.data();
  op.heads = call.heads.data();
  return call;
}

}  // namespace leeboard

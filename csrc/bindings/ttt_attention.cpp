#include <pybind11/stl.h>

#include "bindings.h"
#include "parallel.h"
#include "sparse_view.h"

namespace leeboard {
namespace {

// As many as make the memory of a training step linear in its rows from a few hundred on.
constexpr int64_t kChunks = 16;

// Keys and values of every step, [B, Hkv, T, D] each; the first are those that a pattern shows.
struct Steps {
  std::vector<Heads> k;
  std::vector<Heads> v;
};

// The tensors of the later steps, which have the type and sizes of the first; false for others.
bool read_later(const TensorReader& reader, const std::vector<py::object>& objects,
                const SparseCall& call, bool written, std::vector<Heads>& to) {
  for (size_t i = 1; i < objects.size(); ++i) {
    const auto t = read_heads(reader, objects[i]);
    if (!t || t->dtype != call.op.dtype ||
        !t->is(call.batch, call.op.kv_heads, call.keys, call.op.d) ||
        (written && !rows_apart(*t))) {
      return false;
    }
    to.push_back(t->view);
  }
  return true;
}

std::optional<SparseCall> read_call(const TensorReader& reader, py::handle q,
                                    const std::vector<py::object>& k,
                                    const std::vector<py::object>& v, py::handle plans,
                                    py::handle bounds, double scale, Steps& later) {
  if (k.empty() || k.size() != v.size()) return std::nullopt;
  auto call = read_sparse_call(reader, q, k[0], v[0], plans, bounds, bounds, py::none(), py::none(),
                               py::none(), scale, 0.0);
  if (!call || call->queries != call->keys || !read_later(reader, k, *call, false, later.k) ||
      !read_later(reader, v, *call, false, later.v)) {
    return std::nullopt;
  }
  call->op.own_k = later.k.data();
  call->op.own_v = later.v.data();
  call->op.own_count = static_cast<int64_t>(later.k.size());
  return call;
}

// A tensor like q, or like k[0] for `keys`.
std::optional<Heads> read_like(const TensorReader& reader, py::handle object,
                               const SparseCall& call, bool keys, bool written) {
  const auto t = read_heads(reader, object);
  if (!t || t->dtype != call.op.dtype ||
      !t->is(call.batch, keys ? call.op.kv_heads : call.query_heads, call.queries, call.op.d) ||
      (written && !rows_apart(*t))) {
    return std::nullopt;
  }
  return t->view;
}

}  // namespace

void bind_ttt_attention(py::module_& module, const TensorReader& reader) {
  module.def(
      "ttt_attention_forward",
      [&reader](py::handle q, const std::vector<py::object>& k, const std::vector<py::object>& v,
                py::handle out_object, py::handle lse_object, py::handle plans, py::handle bounds,
                double scale, int level) {
        Steps later;
        const auto call = read_call(reader, q, k, v, plans, bounds, scale, later);
        if (!call) return false;
        const auto out = read_like(reader, out_object, *call, false, true);
        if (!out) return false;
        SparseGqaForward args{};
        if (!lse_object.is_none()) {
          bool fits = true;
          args.lse = read_row_values(reader, lse_object, call->batch, call->query_heads,
                                     call->queries, fits);
          if (!fits) return false;
        }
        args.op = call->op;
        args.out = *out;
        args.query_heads = call->query_heads;
        args.queries = call->queries;
        const KernelTable& kernels = kernels_of(level);
        py::gil_scoped_release nogil;
        run_sparse_forward(kernels, args);
        return true;
      },
      py::arg("q"), py::arg("k"), py::arg("v"), py::arg("out"), py::arg("lse").none(true),
      py::arg("plans"), py::arg("bounds").none(true), py::arg("scale"), py::arg("level"));
  module.def(
      "ttt_attention_backward",
      [&reader](py::handle grad_out_object, py::handle q, const std::vector<py::object>& k,
                const std::vector<py::object>& v, py::handle out_object, py::handle lse_object,
                py::handle grad_q_object, const std::vector<py::object>& grad_k_objects,
                const std::vector<py::object>& grad_v_objects, py::handle plans, py::handle bounds,
                double scale, int level) {
        Steps later;
        const auto call = read_call(reader, q, k, v, plans, bounds, scale, later);
        if (!call || grad_k_objects.size() != k.size() || grad_v_objects.size() != v.size()) {
          return false;
        }
        const auto grad_out = read_like(reader, grad_out_object, *call, false, false);
        const auto out = read_like(reader, out_object, *call, false, false);
        const auto grad_q = read_like(reader, grad_q_object, *call, false, true);
        const auto grad_k = read_like(reader, grad_k_objects[0], *call, true, true);
        const auto grad_v = read_like(reader, grad_v_objects[0], *call, true, true);
        Steps grads;
        bool fits = true;
        SparseGqaBackward args{};
        args.lse = read_row_values(reader, lse_object, call->batch, call->query_heads,
                                   call->queries, fits);
        if (!grad_out || !out || !grad_q || !grad_k || !grad_v || !fits ||
            !read_later(reader, grad_k_objects, *call, true, grads.k) ||
            !read_later(reader, grad_v_objects, *call, true, grads.v)) {
          return false;
        }
        args.op = call->op;
        args.grad_out = *grad_out;
        args.out = *out;
        args.grad_q = *grad_q;
        args.grad_k = *grad_k;
        args.grad_v = *grad_v;
        args.grad_own_k = grads.k.data();
        args.grad_own_v = grads.v.data();
        args.query_heads = call->query_heads;
        args.queries = call->queries;
        const KernelTable& kernels = kernels_of(level);
        py::gil_scoped_release nogil;
        run_sparse_backward(kernels, args, kChunks);
        return true;
      },
      py::arg("grad_out"), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("out"), py::arg("lse"),
      py::arg("grad_q"), py::arg("grad_k"), py::arg("grad_v"), py::arg("plans"),
      py::arg("bounds").none(true), py::arg("scale"), py::arg("level"));
}

}  // namespace leeboard

#include <pybind11/stl.h>

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

}  // namespace

void bind_sparse(py::module_& module, const TensorReader& reader) {
  py::class_<AttentionPlan>(module, "AttentionPlan")
      .def(py::init([&reader](py::handle offsets, py::handle spans, int64_t keys) {
             return make_plan(reader, offsets, spans, keys);
           }),
           py::arg("offsets"), py::arg("spans"), py::arg("keys"))
      .def_readonly("queries", &AttentionPlan::queries)
      .def_readonly("keys", &AttentionPlan::keys);
  module.def("sparse_gqa_forward", [](const py::args&) { return false; });
  module.def("sparse_gqa_top_u", [](const py::args&) { return false; });
}

}  // namespace leeboard

#include <algorithm>

#include "bindings.h"
#include "parallel.h"

namespace leeboard {
namespace {

// int64 [...] of x's leading dimensions, as rows of one column.
std::optional<RowsView> read_tokens(const TensorReader& reader, py::handle object,
                                    const TensorView& x) {
  auto tensor = reader.read(object);
  if (!tensor || tensor->kind != Kind::kInt64 || tensor->ndim != x.ndim - 1 ||
      !std::equal(tensor->shape, tensor->shape + tensor->ndim, x.shape)) {
    return std::nullopt;
  }
  tensor->shape[tensor->ndim] = 1;
  tensor->strides[tensor->ndim] = 1;
  ++tensor->ndim;
  return as_rows(*tensor);
}

// Rows of x's dtype and leading dimensions, of `cols` columns.
std::optional<RowsView> read_output(const TensorReader& reader, py::handle object,
                                    const TensorView& x, int64_t cols) {
  const auto tensor = reader.read(object);
  if (!tensor || tensor->kind != x.kind || tensor->ndim != x.ndim || tensor->last() != cols ||
      !std::equal(x.shape, x.shape + x.ndim - 1, tensor->shape)) {
    return std::nullopt;
  }
  return as_rows(*tensor);
}

// A vector of x's dtype and width, as one row.
std::optional<RowsView> read_gain(const TensorReader& reader, py::handle object,
                                  const TensorView& x) {
  const auto tensor = reader.read(object);
  if (!tensor || tensor->kind != x.kind || as_vector(*tensor, x.last()) == nullptr) {
    return std::nullopt;
  }
  return as_rows(*tensor);
}

bool all_in_table(const RowsView& token, int64_t rows) {
  const auto* id = reinterpret_cast<const int64_t*>(token.data);
  for (int64_t i = 0; i < token.rows; ++i, id += token.stride) {
    if (*id < 0 || *id >= rows) return false;
  }
  return true;
}

}  // namespace

void bind_glue(py::module_& module, const TensorReader& reader) {
  module.def(
      "drafter_glue_forward",
      [&reader](py::handle x_object, py::handle token_object, py::handle embedding_object,
                py::handle norm_object, py::handle hidden_object, py::handle input_object,
                py::handle joined_object, py::handle state_object, py::handle eps_object,
                py::handle norm_output, int level) {
        if (!PyFloat_Check(eps_object.ptr()) || !PyBool_Check(norm_output.ptr())) return false;
        const double eps = PyFloat_AS_DOUBLE(eps_object.ptr());
        if (!(eps >= 0)) return false;
        const auto x_tensor = reader.read(x_object);
        if (!x_tensor || x_tensor->ndim == 0) return false;
        const auto dtype = float_dtype(x_tensor->kind);
        const auto x = as_rows(*x_tensor);
        const auto embedding_tensor = reader.read(embedding_object);
        if (!dtype || !x || x->cols == 0 || !embedding_tensor || embedding_tensor->ndim != 2 ||
            embedding_tensor->kind != x_tensor->kind || embedding_tensor->last() != x->cols) {
          return false;
        }
        const auto token = read_tokens(reader, token_object, *x_tensor);
        const auto embedding = as_rows(*embedding_tensor);
        const auto norm = read_gain(reader, norm_object, *x_tensor);
        const auto hidden = read_gain(reader, hidden_object, *x_tensor);
        const auto input = read_gain(reader, input_object, *x_tensor);
        const auto joined = read_output(reader, joined_object, *x_tensor, 2 * x->cols);
        const auto state = read_output(reader, state_object, *x_tensor, x->cols);
        if (!token || !embedding || embedding->rows == 0 || !norm || !hidden || !input || !joined ||
            !state || !rows_distinct(*joined) || !rows_distinct(*state) ||
            !apart(*joined, *state) || !apart(*joined, *x) || !may_write(*state, *x)) {
          return false;
        }
        for (const RowsView& in : {*token, *embedding, *norm, *hidden, *input}) {
          if (!apart(*joined, in) || !apart(*state, in)) return false;
        }
        if (!all_in_table(*token, embedding->rows)) return false;
        const DrafterGlue args{*dtype,
                               x->cols,
                               x->in(),
                               reinterpret_cast<const int64_t*>(token->data),
                               token->stride,
                               embedding->in(),
                               norm_output.ptr() == Py_True ? norm->data : nullptr,
                               hidden->data,
                               input->data,
                               static_cast<float>(eps),
                               joined->out(),
                               state->out()};
        const KernelTable& kernels = kernels_of(level);
        // Read: the stream and the embedding; written: three rows.
        const int64_t bytes_each = 5 * x->cols * x->item;
        if (x->rows * bytes_each <= kParallelBytes) {
          // Giving the lock away costs as much as such a call.
          kernels.drafter_glue_forward(args, 0, x->rows);
        } else {
          py::gil_scoped_release nogil;
          parallel_for(x->rows, grain_of(bytes_each), [&](int64_t begin, int64_t end) {
            kernels.drafter_glue_forward(args, begin, end);
          });
        }
        return true;
      },
      py::arg("x"), py::arg("token"), py::arg("embedding"), py::arg("norm_weight"),
      py::arg("hidden_weight"), py::arg("input_weight"), py::arg("joined"), py::arg("state"),
      py::arg("eps"), py::arg("norm_output"), py::arg("level"));
}

}  // namespace leeboard

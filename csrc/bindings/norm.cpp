#include <algorithm>
#include <memory>

#include "bindings.h"
#include "parallel.h"

namespace leeboard {
namespace {

// The input of a norm, as given and as rows.
struct Input {
  TensorView tensor;
  RowsView rows;
};

// eps, weight_offset and rounding as Python gave them. Reading them here keeps calls short.
struct Options {
  py::handle eps;
  py::handle weight_offset;
  py::handle rounding;
};

bool is_text(py::handle object, const char* text) {
  return PyUnicode_Check(object.ptr()) && PyUnicode_CompareWithASCIIString(object.ptr(), text) == 0;
}

// Input, weight and options of a norm; false when a kernel does not take them.
bool read_norm(const TensorReader& reader, py::handle x_object, py::handle weight_object,
               const Options& options, Input& x, NormParams& norm) {
  const bool before_weight = is_text(options.rounding, "before_weight");
  if (!PyFloat_Check(options.eps.ptr()) || !PyFloat_Check(options.weight_offset.ptr()) ||
      !(before_weight || is_text(options.rounding, "after_weight"))) {
    return false;
  }
  const double eps = PyFloat_AS_DOUBLE(options.eps.ptr());
  if (!(eps >= 0)) return false;
  const auto tensor = reader.read(x_object);
  if (!tensor) return false;
  const auto dtype = float_dtype(tensor->kind);
  const auto rows = as_rows(*tensor);
  if (!dtype || !rows || rows->cols == 0) return false;
  x = {*tensor, *rows};
  const void* weight = nullptr;
  if (!weight_object.is_none()) {
    const auto weight_tensor = reader.read(weight_object);
    if (!weight_tensor || weight_tensor->kind != tensor->kind) return false;
    weight = as_vector(*weight_tensor, rows->cols);
    if (weight == nullptr) return false;
  }
  norm = {*dtype,
          rows->cols,
          weight,
          static_cast<float>(eps),
          static_cast<float>(PyFloat_AS_DOUBLE(options.weight_offset.ptr())),
          before_weight};
  return true;
}

// A tensor of x's dtype and shape.
bool read_like(const TensorReader& reader, py::handle object, const Input& x, RowsView& view) {
  const auto tensor = reader.read(object);
  if (!tensor || tensor->kind != x.tensor.kind || !same_shape(*tensor, x.tensor)) return false;
  const auto rows = as_rows(*tensor);
  if (!rows) return false;
  view = *rows;
  return true;
}

bool weight_apart(const RowsView& out, const NormParams& norm) {
  if (norm.weight == nullptr) return true;
  const RowsView weight{const_cast<char*>(static_cast<const char*>(norm.weight)), 1, norm.cols,
                        norm.cols, out.item};
  return apart(out, weight);
}

bool wants_stream(const RowsView& out) { return out.rows * out.cols * out.item >= kStreamBytes; }

// Chunks of the weight gradient: fixed by the number of rows alone.
int64_t chunk_rows_of(int64_t rows) {
  constexpr int64_t kMostChunks = 64;
  constexpr int64_t kLeastRows = 16;
  return std::max(kLeastRows, (rows + kMostChunks - 1) / kMostChunks);
}

}  // namespace

void bind_norm(py::module_& module, const TensorReader& reader) {
  module.def(
      "rms_norm_forward",
      [&reader](py::handle x_object, py::handle weight, py::handle out_object, py::handle eps,
                py::handle weight_offset, py::handle rounding, int level) {
        RmsNormForward args;
        Input input;
        RowsView out;
        if (!read_norm(reader, x_object, weight, {eps, weight_offset, rounding}, input,
                       args.norm) ||
            !read_like(reader, out_object, input, out) || !rows_distinct(out) ||
            !may_write(out, input.rows) || !weight_apart(out, args.norm)) {
          return false;
        }
        const RowsView& x = input.rows;
        args.x = x.in();
        args.out = out.out();
        args.stream = wants_stream(out);
        const KernelTable& kernels = kernels_of(level);
        const int64_t grain = grain_of(2 * x.cols * x.item);
        if (2 * x.rows * x.cols * x.item <= kParallelBytes) {
          // Giving the lock away costs as much as such a call.
          kernels.rms_norm_forward(args, 0, x.rows);
        } else {
          py::gil_scoped_release nogil;
          parallel_for(x.rows, grain, [&](int64_t begin, int64_t end) {
            kernels.rms_norm_forward(args, begin, end);
          });
        }
        return true;
      },
      py::arg("x"), py::arg("weight").none(true), py::arg("out"), py::arg("eps"),
      py::arg("weight_offset"), py::arg("rounding"), py::arg("level"));

  module.def(
      "add_rms_norm_forward",
      [&reader](py::handle x_object, py::handle residual_object, py::handle weight,
                py::handle normed_object, py::handle new_residual_object, py::handle eps,
                py::handle weight_offset, py::handle rounding, int level) {
        AddRmsNormForward args;
        Input input;
        RowsView residual;
        RowsView normed;
        RowsView new_residual;
        if (!read_norm(reader, x_object, weight, {eps, weight_offset, rounding}, input,
                       args.norm) ||
            !read_like(reader, residual_object, input, residual) ||
            !read_like(reader, normed_object, input, normed) ||
            !read_like(reader, new_residual_object, input, new_residual) ||
            !rows_distinct(normed) || !rows_distinct(new_residual) ||
            !apart(normed, new_residual) || !weight_apart(normed, args.norm) ||
            !weight_apart(new_residual, args.norm)) {
          return false;
        }
        for (const RowsView& out : {normed, new_residual}) {
          if (!may_write(out, input.rows) || !may_write(out, residual)) return false;
        }
        const RowsView& x = input.rows;
        args.x = x.in();
        args.residual = residual.in();
        args.normed = normed.out();
        args.new_residual = new_residual.out();
        args.stream = wants_stream(normed);
        const KernelTable& kernels = kernels_of(level);
        const int64_t grain = grain_of(4 * x.cols * x.item);
        if (4 * x.rows * x.cols * x.item <= kParallelBytes) {
          kernels.add_rms_norm_forward(args, 0, x.rows);
        } else {
          py::gil_scoped_release nogil;
          parallel_for(x.rows, grain, [&](int64_t begin, int64_t end) {
            kernels.add_rms_norm_forward(args, begin, end);
          });
        }
        return true;
      },
      py::arg("x"), py::arg("residual"), py::arg("weight").none(true), py::arg("normed"),
      py::arg("new_residual"), py::arg("eps"), py::arg("weight_offset"), py::arg("rounding"),
      py::arg("level"));

  module.def(
      "rms_norm_backward",
      [&reader](py::handle grad_object, py::handle x_object, py::handle weight,
                py::handle grad_residual_object, py::handle grad_x_object,
                py::handle grad_weight_object, py::handle eps, py::handle weight_offset,
                py::handle rounding, int level) {
        RmsNormBackward args;
        Input input;
        RowsView grad;
        RowsView grad_x;
        RowsView grad_residual{nullptr, 0, 0, 0, 0};
        void* grad_weight = nullptr;
        if (!read_norm(reader, x_object, weight, {eps, weight_offset, rounding}, input,
                       args.norm) ||
            !read_like(reader, grad_object, input, grad) ||
            !read_like(reader, grad_x_object, input, grad_x) || !rows_distinct(grad_x) ||
            !apart(grad_x, input.rows) || !apart(grad_x, grad) ||
            !weight_apart(grad_x, args.norm)) {
          return false;
        }
        if (!grad_residual_object.is_none() &&
            (!read_like(reader, grad_residual_object, input, grad_residual) ||
             !apart(grad_x, grad_residual))) {
          return false;
        }
        if (args.norm.weight != nullptr) {
          const auto tensor = reader.read(grad_weight_object);
          if (!tensor || float_dtype(tensor->kind) != args.norm.dtype) return false;
          grad_weight = const_cast<void*>(as_vector(*tensor, input.rows.cols));
          if (grad_weight == nullptr) return false;
        }
        const RowsView& x = input.rows;
        args.rows = x.rows;
        args.chunk_rows = chunk_rows_of(x.rows);
        args.x = x.in();
        args.grad = grad.in();
        args.grad_residual = grad_residual.in();
        args.grad_x = grad_x.out();
        args.stream = wants_stream(grad_x);
        const int64_t chunks = (x.rows + args.chunk_rows - 1) / args.chunk_rows;
        std::unique_ptr<float[]> partial;
        if (grad_weight != nullptr) {
          partial.reset(new float[static_cast<size_t>(std::max<int64_t>(chunks, 1) * x.cols)]);
        }
        args.partial = partial.get();
        const KernelTable& kernels = kernels_of(level);
        py::gil_scoped_release nogil;
        parallel_for(
            chunks, grain_of(3 * args.chunk_rows * x.cols * x.item),
            [&](int64_t begin, int64_t end) { kernels.rms_norm_backward(args, begin, end); });
        if (grad_weight != nullptr) {
          const ColumnSum sum{args.norm.dtype, chunks, x.cols, args.partial, grad_weight};
          parallel_for(x.cols, grain_of(chunks * 4),
                       [&](int64_t begin, int64_t end) { kernels.column_sum(sum, begin, end); });
        }
        return true;
      },
      py::arg("grad"), py::arg("x"), py::arg("weight").none(true),
      py::arg("grad_residual").none(true), py::arg("grad_x"), py::arg("grad_weight").none(true),
      py::arg("eps"), py::arg("weight_offset"), py::arg("rounding"), py::arg("level"));
}

}  // namespace leeboard

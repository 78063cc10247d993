#include <pybind11/stl.h>

#include <algorithm>
#include <vector>

#include "bindings.h"
#include "parallel.h"
#include "weight_view.h"

namespace leeboard {
namespace {

// out[row + m] = residual[row + m] + panel[m] weight^T for m < rows.
void multiply(const KernelTable& kernels, const Panel& panel, const WeightView& weight, DType dtype,
              const std::optional<RowsView>& residual, const RowsView& out, int64_t row,
              int64_t rows) {
  const auto at = [row](const RowsView& view) { return view.data + row * view.stride * view.item; };
  const LinearForward args{
      dtype,
      rows,
      panel.data.get(),
      panel.stride,
      weight.matrix,
      residual ? ConstRows{at(*residual), residual->stride} : ConstRows{nullptr, 0},
      {at(out), out.stride}};
  parallel_for(weight.matrix.rows, grain_of(weight.row_bytes()),
               [&](int64_t begin, int64_t end) { kernels.linear_forward(args, begin, end); });
}

// What is added to a product and where it goes, [rows, features] both.
struct Epilogue {
  std::optional<RowsView> residual;
  RowsView out;
};

std::optional<Epilogue> read_epilogue(const TensorReader& reader, py::handle residual_object,
                                      py::handle out_object, DType dtype, int64_t rows,
                                      int64_t features) {
  const auto out = read_matrix(reader, out_object, dtype);
  if (!out || out->rows != rows || out->cols != features || !rows_distinct(*out)) {
    return std::nullopt;
  }
  if (residual_object.is_none()) return Epilogue{std::nullopt, *out};
  const auto residual = read_matrix(reader, residual_object, dtype);
  if (!residual || residual->rows != rows || residual->cols != features ||
      !may_write(*out, *residual)) {
    return std::nullopt;
  }
  return Epilogue{residual, *out};
}

}  // namespace

void bind_linear(py::module_& module, const TensorReader& reader) {
  module.def(
      "aux_norm_linear_forward",
      [&reader](const std::vector<py::object>& hidden_objects,
                const std::vector<py::object>& gamma_objects, py::handle weight_object,
                py::handle out_object, double eps, int level) {
        const auto first = hidden_objects.empty() ? std::nullopt : reader.read(hidden_objects[0]);
        const auto dtype = first ? float_dtype(first->kind) : std::nullopt;
        if (!dtype) return false;
        const int64_t states = static_cast<int64_t>(hidden_objects.size());
        const int64_t cols = first->last();
        const auto weight = read_weight(reader, weight_object, py::none(), "plain", cols * states);
        if (!weight || weight->matrix.format != format_of(*dtype)) return false;
        std::vector<RowsView> hiddens;
        std::vector<const void*> gammas;
        for (const py::object& object : hidden_objects) {
          const auto rows = read_matrix(reader, object, *dtype);
          if (!rows || rows->cols != cols) return false;
          hiddens.push_back(*rows);
        }
        for (const py::object& object : gamma_objects) {
          const auto tensor = reader.read(object);
          if (!tensor || float_dtype(tensor->kind) != *dtype) return false;
          gammas.push_back(as_vector(*tensor, cols));
          if (gammas.back() == nullptr) return false;
        }
        const auto out = read_matrix(reader, out_object, *dtype);
        const int64_t rows = hiddens[0].rows;
        if (!out || out->rows != rows || out->cols != weight->matrix.rows || !rows_distinct(*out) ||
            !weight->apart_from(*out) || (!gammas.empty() && gammas.size() != hiddens.size())) {
          return false;
        }
        for (const RowsView& hidden : hiddens) {
          if (hidden.rows != rows || !apart(*out, hidden)) return false;
        }
        const KernelTable& kernels = kernels_of(level);
        py::gil_scoped_release nogil;
        const Panel panel(std::min(rows, kLinearMaxRows), weight->matrix.cols);
        for (int64_t row = 0; row < rows; row += kLinearMaxRows) {
          const int64_t count = std::min(kLinearMaxRows, rows - row);
          for (size_t s = 0; s < hiddens.size(); ++s) {
            const PackNormed args{*dtype,
                                  weight->matrix.format,
                                  cols,
                                  Activations{*dtype, hiddens[s]}.from_row(row),
                                  *dtype,
                                  gammas.empty() ? nullptr : gammas[s],
                                  true,
                                  static_cast<float>(eps),
                                  panel.data.get(),
                                  panel.stride,
                                  static_cast<int64_t>(s) * cols};
            parallel_for(count, grain_of(cols * 8), [&](int64_t begin, int64_t end) {
              kernels.pack_normed(args, begin, end);
            });
          }
          multiply(kernels, panel, *weight, *dtype, std::nullopt, *out, row, count);
        }
        return true;
      },
      py::arg("hiddens"), py::arg("gammas"), py::arg("weight"), py::arg("out"), py::arg("eps"),
      py::arg("level"));

  module.def(
      "qlinear_forward",
      [&reader](py::handle x_object, py::handle data, py::handle scales, py::handle norm_weight,
                py::handle residual, py::handle out_object, const std::string& format, double eps,
                int level) {
        const auto x = read_activations(reader, x_object);
        if (!x) return false;
        const auto weight = read_weight(reader, data, scales, format, x->view.cols);
        const auto prologue = read_prologue(reader, norm_weight, *x, eps);
        if (!weight || !prologue) return false;
        const int64_t rows = x->view.rows;
        const auto epilogue =
            read_epilogue(reader, residual, out_object, x->dtype, rows, weight->matrix.rows);
        if (!epilogue || !weight->apart_from(epilogue->out) || !apart(epilogue->out, x->view)) {
          return false;
        }
        const KernelTable& kernels = kernels_of(level);
        py::gil_scoped_release nogil;
        const Panel panel(std::min(rows, kLinearMaxRows), x->view.cols);
        for (int64_t row = 0; row < rows; row += kLinearMaxRows) {
          const int64_t count = std::min(kLinearMaxRows, rows - row);
          pack(kernels, *x, row, count, *prologue, weight->matrix.format, panel);
          multiply(kernels, panel, *weight, x->dtype, epilogue->residual, epilogue->out, row,
                   count);
        }
        return true;
      },
      py::arg("x"), py::arg("data"), py::arg("scales").none(true),
      py::arg("norm_weight").none(true), py::arg("residual").none(true), py::arg("out"),
      py::arg("format"), py::arg("eps"), py::arg("level"));

  module.def(
      "swiglu_linear_forward",
      [&reader](py::handle x_object, const std::vector<py::object>& matrices,
                py::handle norm_weight, py::handle residual, py::handle out_object,
                const std::vector<std::string>& formats, double eps, int level) {
        const auto x = read_activations(reader, x_object);
        // [data, scales or None] of gate, up and down.
        if (!x || matrices.size() != 6 || formats.size() != 3) return false;
        const int64_t cols = x->view.cols;
        const auto gate = read_weight(reader, matrices[0], matrices[1], formats[0], cols);
        const auto up = read_weight(reader, matrices[2], matrices[3], formats[1], cols);
        if (!gate || !up || up->matrix.rows != gate->matrix.rows) return false;
        const int64_t width = gate->matrix.rows;
        const auto down = read_weight(reader, matrices[4], matrices[5], formats[2], width);
        const auto prologue = read_prologue(reader, norm_weight, *x, eps);
        if (!down || !prologue) return false;
        const int64_t rows = x->view.rows;
        const auto epilogue =
            read_epilogue(reader, residual, out_object, x->dtype, rows, down->matrix.rows);
        if (!epilogue || !apart(epilogue->out, x->view) || !gate->apart_from(epilogue->out) ||
            !up->apart_from(epilogue->out) || !down->apart_from(epilogue->out)) {
          return false;
        }
        const KernelTable& kernels = kernels_of(level);
        py::gil_scoped_release nogil;
        const int64_t most = std::min(rows, kLinearMaxRows);
        const Panel panel(most, cols);
        const bool one_order = same_order(gate->matrix.format, up->matrix.format);
        const Panel second(one_order ? 0 : most, cols);
        const Panel gated(most, width);
        for (int64_t row = 0; row < rows; row += kLinearMaxRows) {
          const int64_t count = std::min(kLinearMaxRows, rows - row);
          pack(kernels, *x, row, count, *prologue, gate->matrix.format, panel);
          if (!one_order) pack(kernels, *x, row, count, *prologue, up->matrix.format, second);
          const SwigluForward args{count,
                                   panel.data.get(),
                                   one_order ? panel.data.get() : second.data.get(),
                                   panel.stride,
                                   gate->matrix,
                                   up->matrix,
                                   down->matrix.format,
                                   gated.data.get(),
                                   gated.stride};
          parallel_for(width, grain_of(gate->row_bytes() + up->row_bytes()),
                       [&](int64_t begin, int64_t end) { kernels.swiglu_gated(args, begin, end); });
          multiply(kernels, gated, *down, x->dtype, epilogue->residual, epilogue->out, row, count);
        }
        return true;
      },
      py::arg("x"), py::arg("matrices"), py::arg("norm_weight").none(true),
      py::arg("residual").none(true), py::arg("out"), py::arg("formats"), py::arg("eps"),
      py::arg("level"));
}

}  // namespace leeboard

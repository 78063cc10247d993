#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "bindings.h"
#include "parallel.h"
#include "weight_view.h"

namespace leeboard {
namespace {

void pack(const KernelTable& kernels, PackNormed args, int64_t rows) {
  parallel_for(rows, grain_of(args.cols * 8),
               [&](int64_t begin, int64_t end) { kernels.pack_normed(args, begin, end); });
}

ConstRows from_row(const RowsView& view, int64_t row) {
  return {view.data + row * view.stride * view.item, view.stride};
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
            pack(kernels,
                 {*dtype, weight->matrix.format, cols, from_row(hiddens[s], row), *dtype,
                  gammas.empty() ? nullptr : gammas[s], true, static_cast<float>(eps),
                  panel.data.get(), panel.stride, static_cast<int64_t>(s) * cols},
                 count);
          }
          const LinearForward args{*dtype,
                                   count,
                                   panel.data.get(),
                                   panel.stride,
                                   weight->matrix,
                                   {nullptr, 0},
                                   {out->data + row * out->stride * out->item, out->stride}};
          parallel_for(
              weight->matrix.rows, grain_of(weight->row_bytes()),
              [&](int64_t begin, int64_t end) { kernels.linear_forward(args, begin, end); });
        }
        return true;
      },
      py::arg("hiddens"), py::arg("gammas"), py::arg("weight"), py::arg("out"), py::arg("eps"),
      py::arg("level"));

  module.def(
      "linear_argmax_forward",
      [&reader](py::handle x_object, py::handle data, py::handle scales, py::handle d2t_object,
                py::handle index_object, py::handle value_object, const std::string& format,
                int level) {
        const auto x_tensor = reader.read(x_object);
        const auto dtype = x_tensor ? float_dtype(x_tensor->kind) : std::nullopt;
        const auto x = dtype ? as_rows(*x_tensor) : std::nullopt;
        if (!x) return false;
        const auto weight = read_weight(reader, data, scales, format, x->cols);
        if (!weight || weight->matrix.rows == 0) return false;
        const auto index_tensor = reader.read(index_object);
        const auto value_tensor = reader.read(value_object);
        if (!index_tensor || !value_tensor || index_tensor->kind != Kind::kInt64 ||
            value_tensor->kind != Kind::kFloat32) {
          return false;
        }
        auto* index = static_cast<int64_t*>(const_cast<void*>(as_vector(*index_tensor, x->rows)));
        auto* value = static_cast<float*>(const_cast<void*>(as_vector(*value_tensor, x->rows)));
        if (x->rows > 0 && (index == nullptr || value == nullptr)) return false;
        const int64_t* d2t = nullptr;
        if (!d2t_object.is_none()) {
          const auto tensor = reader.read(d2t_object);
          if (!tensor || tensor->kind != Kind::kInt64) return false;
          d2t = static_cast<const int64_t*>(as_vector(*tensor, weight->matrix.rows));
          if (d2t == nullptr) return false;
        }
        const KernelTable& kernels = kernels_of(level);
        const int64_t vocab = weight->matrix.rows;
        constexpr int64_t kBlock = 128;
        const int64_t blocks = (vocab + kBlock - 1) / kBlock;
        py::gil_scoped_release nogil;
        const int64_t most = std::min(x->rows, kLinearMaxRows);
        const Panel panel(most, x->cols);
        std::vector<float> best_value(static_cast<size_t>(blocks * most));
        std::vector<int64_t> best_index(static_cast<size_t>(blocks * most));
        for (int64_t row = 0; row < x->rows; row += kLinearMaxRows) {
          const int64_t count = std::min(kLinearMaxRows, x->rows - row);
          pack(kernels,
               {*dtype, weight->matrix.format, x->cols, from_row(*x, row), *dtype, nullptr, false,
                0.0f, panel.data.get(), panel.stride, 0},
               count);
          const LinearArgmax args{count,
                                  kBlock,
                                  panel.data.get(),
                                  panel.stride,
                                  weight->matrix,
                                  best_value.data(),
                                  best_index.data()};
          parallel_for(
              blocks, grain_of(kBlock * weight->row_bytes()),
              [&](int64_t begin, int64_t end) { kernels.linear_argmax(args, begin, end); });
          for (int64_t m = 0; m < count; ++m) {
            int64_t best = m;
            for (int64_t at = m + count; at < blocks * count; at += count) {
              const float a = best_value[static_cast<size_t>(at)];
              const float b = best_value[static_cast<size_t>(best)];
              if (a > b || (std::isnan(a) && !std::isnan(b))) best = at;
            }
            const int64_t winner = best_index[static_cast<size_t>(best)];
            index[row + m] = d2t == nullptr ? winner : winner + d2t[winner];
            value[row + m] = best_value[static_cast<size_t>(best)];
          }
        }
        return true;
      },
      py::arg("x"), py::arg("data"), py::arg("scales").none(true), py::arg("d2t").none(true),
      py::arg("index"), py::arg("value"), py::arg("format"), py::arg("level"));
}

}  // namespace leeboard

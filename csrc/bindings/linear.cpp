#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "bindings.h"
#include "parallel.h"

namespace leeboard {
namespace {

// Prepared activations of at most kLinearMaxRows rows.
struct Panel {
  std::unique_ptr<float[]> data;
  int64_t stride = 0;

  Panel(int64_t rows, int64_t k, int64_t multiple)
      : stride((k + multiple - 1) / multiple * multiple) {
    data.reset(new float[static_cast<size_t>(std::max<int64_t>(rows * stride, 1))]());
  }
};

struct Matrix {
  DType dtype;
  RowsView view;
};

// A weight matrix [features, k] with contiguous rows.
std::optional<Matrix> read_weight(const TensorReader& reader, py::handle object) {
  const auto tensor = reader.read(object);
  if (!tensor || tensor->ndim != 2) return std::nullopt;
  const auto dtype = float_dtype(tensor->kind);
  const auto rows = as_rows(*tensor);
  if (!dtype || !rows || rows->cols == 0) return std::nullopt;
  return Matrix{*dtype, *rows};
}

std::optional<RowsView> read_matrix(const TensorReader& reader, py::handle object, DType dtype) {
  const auto tensor = reader.read(object);
  if (!tensor || float_dtype(tensor->kind) != dtype) return std::nullopt;
  return as_rows(*tensor);
}

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
        const auto weight = read_weight(reader, weight_object);
        if (!weight || hidden_objects.empty()) return false;
        const int64_t states = static_cast<int64_t>(hidden_objects.size());
        const int64_t cols = weight->view.cols / states;
        std::vector<RowsView> hiddens;
        std::vector<const void*> gammas;
        for (const py::object& object : hidden_objects) {
          const auto rows = read_matrix(reader, object, weight->dtype);
          if (!rows || rows->cols != cols) return false;
          hiddens.push_back(*rows);
        }
        for (const py::object& object : gamma_objects) {
          const auto tensor = reader.read(object);
          if (!tensor || float_dtype(tensor->kind) != weight->dtype) return false;
          gammas.push_back(as_vector(*tensor, cols));
          if (gammas.back() == nullptr) return false;
        }
        const auto out = read_matrix(reader, out_object, weight->dtype);
        const int64_t rows = hiddens[0].rows;
        if (!out || out->rows != rows || out->cols != weight->view.rows || !rows_distinct(*out) ||
            !apart(*out, weight->view) || cols * states != weight->view.cols ||
            (!gammas.empty() && gammas.size() != hiddens.size())) {
          return false;
        }
        for (const RowsView& hidden : hiddens) {
          if (hidden.rows != rows || !apart(*out, hidden)) return false;
        }
        const KernelTable& kernels = kernels_of(level);
        py::gil_scoped_release nogil;
        const Panel panel(std::min(rows, kLinearMaxRows), weight->view.cols, kernels.pack_multiple);
        for (int64_t row = 0; row < rows; row += kLinearMaxRows) {
          const int64_t count = std::min(kLinearMaxRows, rows - row);
          for (size_t s = 0; s < hiddens.size(); ++s) {
            pack(kernels,
                 {weight->dtype, cols, from_row(hiddens[s], row),
                  gammas.empty() ? nullptr : gammas[s], true, static_cast<float>(eps),
                  panel.data.get(), panel.stride, static_cast<int64_t>(s) * cols},
                 count);
          }
          const LinearForward args{weight->dtype,
                                   count,
                                   weight->view.cols,
                                   panel.data.get(),
                                   panel.stride,
                                   weight->view.in(),
                                   {out->data + row * out->stride * out->item, out->stride}};
          parallel_for(
              weight->view.rows, grain_of(weight->view.cols * weight->view.item),
              [&](int64_t begin, int64_t end) { kernels.linear_forward(args, begin, end); });
        }
        return true;
      },
      py::arg("hiddens"), py::arg("gammas"), py::arg("weight"), py::arg("out"), py::arg("eps"),
      py::arg("level"));

  module.def(
      "linear_argmax_forward",
      [&reader](py::handle x_object, py::handle weight_object, py::handle d2t_object,
                py::handle index_object, py::handle value_object, int level) {
        const auto weight = read_weight(reader, weight_object);
        if (!weight || weight->view.rows == 0) return false;
        const auto x = read_matrix(reader, x_object, weight->dtype);
        const auto index_tensor = reader.read(index_object);
        const auto value_tensor = reader.read(value_object);
        if (!x || x->cols != weight->view.cols || !index_tensor || !value_tensor ||
            index_tensor->kind != Kind::kInt64 || value_tensor->kind != Kind::kFloat32) {
          return false;
        }
        auto* index = static_cast<int64_t*>(const_cast<void*>(as_vector(*index_tensor, x->rows)));
        auto* value = static_cast<float*>(const_cast<void*>(as_vector(*value_tensor, x->rows)));
        if (x->rows > 0 && (index == nullptr || value == nullptr)) return false;
        const int64_t* d2t = nullptr;
        if (!d2t_object.is_none()) {
          const auto tensor = reader.read(d2t_object);
          if (!tensor || tensor->kind != Kind::kInt64) return false;
          d2t = static_cast<const int64_t*>(as_vector(*tensor, weight->view.rows));
          if (d2t == nullptr) return false;
        }
        const KernelTable& kernels = kernels_of(level);
        const int64_t vocab = weight->view.rows;
        constexpr int64_t kBlock = 128;
        const int64_t blocks = (vocab + kBlock - 1) / kBlock;
        py::gil_scoped_release nogil;
        const int64_t most = std::min(x->rows, kLinearMaxRows);
        const Panel panel(most, x->cols, kernels.pack_multiple);
        std::vector<float> best_value(static_cast<size_t>(blocks * most));
        std::vector<int64_t> best_index(static_cast<size_t>(blocks * most));
        for (int64_t row = 0; row < x->rows; row += kLinearMaxRows) {
          const int64_t count = std::min(kLinearMaxRows, x->rows - row);
          pack(kernels,
               {weight->dtype, x->cols, from_row(*x, row), nullptr, false, 0.0f, panel.data.get(),
                panel.stride, 0},
               count);
          const LinearArgmax args{weight->dtype,
                                  count,
                                  x->cols,
                                  vocab,
                                  kBlock,
                                  panel.data.get(),
                                  panel.stride,
                                  weight->view.in(),
                                  best_value.data(),
                                  best_index.data()};
          parallel_for(
              blocks, grain_of(kBlock * x->cols * weight->view.item),
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
      py::arg("x"), py::arg("weight"), py::arg("d2t").none(true), py::arg("index"),
      py::arg("value"), py::arg("level"));
}

}  // namespace leeboard

#include <algorithm>
#include <vector>

#include "bindings.h"
#include "parallel.h"
#include "weight_view.h"

namespace leeboard {

void bind_head(py::module_& module, const TensorReader& reader) {
  module.def(
      "linear_topk_forward",
      [&reader](py::handle x_object, py::handle data, py::handle scales, py::handle d2t_object,
                py::handle index_object, py::handle value_object, py::handle lse_object,
                const std::string& format, int level) {
        const auto x = read_activations(reader, x_object);
        if (!x) return false;
        const auto weight = read_weight(reader, data, scales, format, x->view.cols);
        const auto index = reader.read(index_object);
        const auto value = reader.read(value_object);
        if (!weight || !index || !value || index->kind != Kind::kInt64 ||
            value->kind != Kind::kFloat32 || index->ndim != 2 || !same_shape(*index, *value)) {
          return false;
        }
        const int64_t rows = x->view.rows;
        const int64_t k = index->shape[1];
        const int64_t vocab = weight->matrix.rows;
        if (index->shape[0] != rows || k < 1 || k > std::min(kTopMost, vocab) ||
            !is_dense(*index) || !is_dense(*value)) {
          return false;
        }
        float* lse = nullptr;
        if (!lse_object.is_none()) {
          const auto tensor = reader.read(lse_object);
          if (!tensor || tensor->kind != Kind::kFloat32) return false;
          lse = static_cast<float*>(const_cast<void*>(as_vector(*tensor, rows)));
          if (lse == nullptr && rows > 0) return false;
        }
        const int64_t* d2t = nullptr;
        if (!d2t_object.is_none()) {
          const auto tensor = reader.read(d2t_object);
          if (!tensor || tensor->kind != Kind::kInt64) return false;
          d2t = static_cast<const int64_t*>(as_vector(*tensor, vocab));
          if (d2t == nullptr) return false;
        }
        const KernelTable& kernels = kernels_of(level);
        py::gil_scoped_release nogil;
        // Fewer rows at a time where much is kept of each.
        const int64_t most = std::min(rows, k > 16 ? kLinearMaxRows / 4 : kLinearMaxRows);
        const Panel panel(most, x->view.cols);
        LinearHead args{};
        args.k = k;
        args.packed = panel.data.get();
        args.packed_stride = panel.stride;
        args.weight = weight->matrix;
        args.d2t = d2t;
        const size_t kept = static_cast<size_t>(args.blocks() * most);
        std::vector<float> block_value(kept * static_cast<size_t>(k));
        std::vector<int64_t> block_index(kept * static_cast<size_t>(k));
        std::vector<float> block_sum(lse == nullptr ? 0 : kept);
        args.block_value = block_value.data();
        args.block_index = block_index.data();
        args.block_sum = lse == nullptr ? nullptr : block_sum.data();
        for (int64_t row = 0; row < rows; row += most) {
          args.rows = std::min(most, rows - row);
          args.value = reinterpret_cast<float*>(value->data) + row * k;
          args.index = reinterpret_cast<int64_t*>(index->data) + row * k;
          args.lse = lse == nullptr ? nullptr : lse + row;
          pack(kernels, *x, row, args.rows, {}, weight->matrix.format, panel);
          parallel_for(args.blocks(), grain_of(kTopBlock * weight->row_bytes()),
                       [&](int64_t begin, int64_t end) { kernels.head_blocks(args, begin, end); });
          parallel_for(args.rows, grain_of(args.blocks() * k * 16),
                       [&](int64_t begin, int64_t end) { kernels.head_join(args, begin, end); });
        }
        return true;
      },
      py::arg("x"), py::arg("data"), py::arg("scales").none(true), py::arg("d2t").none(true),
      py::arg("index"), py::arg("value"), py::arg("lse").none(true), py::arg("format"),
      py::arg("level"));
}

}  // namespace leeboard

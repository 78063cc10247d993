#include "weight_view.h"

#include <algorithm>

#include "parallel.h"

namespace leeboard {
WeightFormat format_of(DType dtype) {
  switch (dtype) {
    case DType::kBFloat16:
      return WeightFormat::kBFloat16;
    case DType::kFloat16:
      return WeightFormat::kFloat16;
    default:
      return WeightFormat::kFloat32;
  }
}

bool WeightView::apart_from(const RowsView& out) const {
  return apart(out, data) && (!scales || apart(out, *scales));
}

std::optional<WeightView> read_weight(const TensorReader& reader, py::handle data_object,
                                      py::handle scales_object, const std::string& format,
                                      int64_t cols) {
  const auto tensor = reader.read(data_object);
  if (!tensor || tensor->ndim != 2 || cols < 1) return std::nullopt;
  const auto data = as_rows(*tensor);
  if (!data) return std::nullopt;
  WeightView view{
      {WeightFormat::kFloat32, data->rows, cols, data->data, data->stride * data->item, nullptr, 0},
      *data,
      std::nullopt};
  if (format == "plain") {
    const auto dtype = float_dtype(tensor->kind);
    if (!dtype || data->cols != cols || !scales_object.is_none()) return std::nullopt;
    view.matrix.format = format_of(*dtype);
    return view;
  }
  const auto scales = reader.read(scales_object);
  if (!scales) return std::nullopt;
  if (format == "int8") {
    view.matrix.format = WeightFormat::kInt8;
    if (tensor->kind != Kind::kInt8 || data->cols != cols || scales->kind != Kind::kFloat32 ||
        as_vector(*scales, data->rows) == nullptr) {
      return std::nullopt;
    }
    view.matrix.scale_stride = 1;
  } else if (format == "int4") {
    view.matrix.format = WeightFormat::kInt4;
    const int64_t groups = packed_width(cols) / kPanelMultiple;
    if (tensor->kind != Kind::kUInt8 || data->cols != groups * kPanelMultiple / 2 ||
        scales->kind != Kind::kBFloat16 || scales->ndim != 2 || scales->shape[0] != data->rows ||
        scales->shape[1] != groups) {
      return std::nullopt;
    }
  } else {
    return std::nullopt;
  }
  view.scales = as_rows(*scales);
  if (!view.scales) return std::nullopt;
  view.matrix.scales = view.scales->data;
  if (format == "int4") view.matrix.scale_stride = view.scales->stride;
  return view;
}

std::optional<RowsView> read_matrix(const TensorReader& reader, py::handle object, DType dtype) {
  const auto tensor = reader.read(object);
  if (!tensor || float_dtype(tensor->kind) != dtype) return std::nullopt;
  return as_rows(*tensor);
}

std::optional<Activations> read_activations(const TensorReader& reader, py::handle object) {
  const auto tensor = reader.read(object);
  const auto dtype = tensor ? float_dtype(tensor->kind) : std::nullopt;
  const auto rows = dtype ? as_rows(*tensor) : std::nullopt;
  if (!rows) return std::nullopt;
  return Activations{*dtype, *rows};
}

std::optional<Prologue> read_prologue(const TensorReader& reader, py::handle norm_weight,
                                      const Activations& x, double eps) {
  if (norm_weight.is_none()) return Prologue{};
  const auto tensor = reader.read(norm_weight);
  const auto dtype = tensor ? float_dtype(tensor->kind) : std::nullopt;
  if (!dtype || (*dtype != x.dtype && *dtype != DType::kFloat32)) return std::nullopt;
  const void* gamma = as_vector(*tensor, x.view.cols);
  if (gamma == nullptr) return std::nullopt;
  return Prologue{true, *dtype, gamma, static_cast<float>(eps)};
}

void pack(const KernelTable& kernels, const Activations& x, int64_t row, int64_t rows,
          const Prologue& prologue, WeightFormat format, const Panel& panel) {
  const PackNormed args{x.dtype,
                        format,
                        x.view.cols,
                        x.from_row(row),
                        prologue.gamma == nullptr ? x.dtype : prologue.gamma_dtype,
                        prologue.gamma,
                        prologue.normalise,
                        prologue.eps,
                        panel.data.get(),
                        panel.stride,
                        0};
  parallel_for(rows, grain_of(args.cols * 8),
               [&](int64_t begin, int64_t end) { kernels.pack_normed(args, begin, end); });
}

Panel::Panel(int64_t rows, int64_t k)
    : data(new float[static_cast<size_t>(std::max<int64_t>(rows * packed_width(k), 1))]()),
      stride(packed_width(k)) {}

}  // namespace leeboard

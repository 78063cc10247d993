// Weight matrices in any format, and prepared activations, for the kernels that stream them.
#pragma once

#include <memory>
#include <string>

#include "tensor_view.h"

namespace leeboard {

struct WeightView {
  WeightMatrix matrix;
  RowsView data;
  std::optional<RowsView> scales;

  // Bytes that are read for one row.
  int64_t row_bytes() const { return data.cols * data.item; }
  // Whether an output shares no byte with it.
  bool apart_from(const RowsView& out) const;
};

// The format of a plain matrix.
WeightFormat format_of(DType dtype);

// Whether one panel serves weights of both formats.
inline bool same_order(WeightFormat a, WeightFormat b) {
  return (a == WeightFormat::kBFloat16) == (b == WeightFormat::kBFloat16);
}

// A weight [rows, cols] from the tensors and the name of its format: "plain" (float32, bfloat16 or
// float16, no scales), "int8" or "int4". Empty for anything that the kernels do not read as it is.
std::optional<WeightView> read_weight(const TensorReader& reader, py::handle data,
                                      py::handle scales, const std::string& format, int64_t cols);

// [rows, cols] of a storage type, contiguous along cols.
std::optional<RowsView> read_matrix(const TensorReader& reader, py::handle object, DType dtype);

struct Activations {
  DType dtype;
  RowsView view;

  ConstRows from_row(int64_t row) const {
    return {view.data + row * view.stride * view.item, view.stride};
  }
};

std::optional<Activations> read_activations(const TensorReader& reader, py::handle object);

// The norm before a product: a gain of x's dtype or float32.
struct Prologue {
  bool normalise = false;
  DType gamma_dtype = DType::kFloat32;
  const void* gamma = nullptr;
  float eps = 0.0f;
};

// None is no norm. Empty for a gain that the kernels do not read as it is.
std::optional<Prologue> read_prologue(const TensorReader& reader, py::handle norm_weight,
                                      const Activations& x, double eps);

// Prepared activations: `rows` rows of zeros, wide enough for `k` columns of any format.
struct Panel {
  std::unique_ptr<float[]> data;
  int64_t stride;

  Panel(int64_t rows, int64_t k);
};

// Brings rows [row, row + rows) of x to the panel, for weights of `format`.
void pack(const KernelTable& kernels, const Activations& x, int64_t row, int64_t rows,
          const Prologue& prologue, WeightFormat format, const Panel& panel);

}  // namespace leeboard

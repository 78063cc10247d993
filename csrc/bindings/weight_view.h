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

// A weight [rows, cols] from the tensors and the name of its format: "plain" (float32, bfloat16 or
// float16, no scales), "int8" or "int4". Empty for anything that the kernels do not read as it is.
std::optional<WeightView> read_weight(const TensorReader& reader, py::handle data,
                                      py::handle scales, const std::string& format, int64_t cols);

// [rows, cols] of a storage type, contiguous along cols.
std::optional<RowsView> read_matrix(const TensorReader& reader, py::handle object, DType dtype);

// Prepared activations: `rows` rows of zeros, wide enough for `k` columns of any format.
struct Panel {
  std::unique_ptr<float[]> data;
  int64_t stride;

  Panel(int64_t rows, int64_t k);
};

}  // namespace leeboard

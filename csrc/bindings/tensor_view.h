// Torch tensors as pointers, shapes and strides, without linking against torch.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>

#include "kernels.h"

namespace leeboard {

namespace py = pybind11;

enum class Kind { kFloat32, kBFloat16, kFloat16, kFloat64, kInt64, kInt32, kInt8, kUInt8, kBool };

// A borrowed view; valid while the tensor object lives and is not resized.
struct TensorView {
  static constexpr int kMaxDims = 16;

  Kind kind;
  char* data;
  int ndim;
  int64_t shape[kMaxDims];
  int64_t strides[kMaxDims];

  int64_t last() const { return ndim > 0 ? shape[ndim - 1] : 1; }
};

// The leading dimensions folded into one row index; the last dimension is contiguous.
struct RowsView {
  char* data;
  int64_t rows;
  int64_t cols;
  int64_t stride;  // in elements
  int64_t item;    // bytes of an element

  ConstRows in() const { return {data, stride}; }
  Rows out() const { return {data, stride}; }
};

// Reads tensors by the exchange table of torch >= 2.10, by attributes before. Made once, at
// import; holds no state that changes afterwards.
class TensorReader {
 public:
  explicit TensorReader(const py::module_& torch);

  // Empty for anything but a plain CPU torch.Tensor or Parameter of a supported dtype: subclasses,
  // fake tensors and foreign arrays are for Python to sort out.
  std::optional<TensorView> read(py::handle object) const;

  bool has_exchange_table() const { return table_ != nullptr; }

 private:
  std::optional<TensorView> read_attributes(py::handle object) const;

  const void* table_ = nullptr;
  PyTypeObject* tensor_type_;
  PyTypeObject* parameter_type_;
};

// Empty when the leading dimensions do not share one stride, or the last is not contiguous.
std::optional<RowsView> as_rows(const TensorView& tensor);

// Empty unless the tensor is a contiguous vector of `size` elements.
const void* as_vector(const TensorView& tensor, int64_t size);

// Whether the elements lie one after another in the order of the dimensions.
bool is_dense(const TensorView& tensor);

bool same_shape(const TensorView& a, const TensorView& b);

std::optional<DType> float_dtype(Kind kind);

// Whether an output may be written while an input is read: they are apart, or element for element
// the same.
bool may_write(const RowsView& out, const RowsView& in);
// Whether two regions share no byte.
bool apart(const RowsView& a, const RowsView& b);
// Whether an output's own rows do not overlap.
bool rows_distinct(const RowsView& out);

}  // namespace leeboard

#include "tensor_view.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "dlpack_abi.h"

namespace leeboard {
namespace {

PyTypeObject* type_of(const py::object& object) {
  return reinterpret_cast<PyTypeObject*>(object.ptr());
}

std::optional<Kind> kind_of(dlpack::DataType type) {
  if (type.lanes != 1) return std::nullopt;
  if (type.code == dlpack::kFloat && type.bits == 32) return Kind::kFloat32;
  if (type.code == dlpack::kFloat && type.bits == 16) return Kind::kFloat16;
  if (type.code == dlpack::kBFloat && type.bits == 16) return Kind::kBFloat16;
  if (type.code == dlpack::kFloat && type.bits == 64) return Kind::kFloat64;
  if (type.code == dlpack::kInt && type.bits == 64) return Kind::kInt64;
  if (type.code == dlpack::kInt && type.bits == 32) return Kind::kInt32;
  if (type.code == dlpack::kInt && type.bits == 8) return Kind::kInt8;
  if (type.code == dlpack::kUInt && type.bits == 8) return Kind::kUInt8;
  if (type.code == dlpack::kBool && type.bits == 8) return Kind::kBool;
  return std::nullopt;
}

std::optional<Kind> kind_of(const std::string& dtype) {
  if (dtype == "torch.float32") return Kind::kFloat32;
  if (dtype == "torch.float16") return Kind::kFloat16;
  if (dtype == "torch.bfloat16") return Kind::kBFloat16;
  if (dtype == "torch.float64") return Kind::kFloat64;
  if (dtype == "torch.int64") return Kind::kInt64;
  if (dtype == "torch.int32") return Kind::kInt32;
  if (dtype == "torch.int8") return Kind::kInt8;
  if (dtype == "torch.uint8") return Kind::kUInt8;
  if (dtype == "torch.bool") return Kind::kBool;
  return std::nullopt;
}

int64_t kind_size(Kind kind) {
  switch (kind) {
    case Kind::kFloat32:
    case Kind::kInt32:
      return 4;
    case Kind::kFloat64:
    case Kind::kInt64:
      return 8;
    case Kind::kInt8:
    case Kind::kUInt8:
    case Kind::kBool:
      return 1;
    default:
      return 2;
  }
}

// Zero tensors, functional tensors and emptied storages have elements but no memory.
std::optional<TensorView> with_memory(const TensorView& view) {
  const bool empty = std::find(view.shape, view.shape + view.ndim, 0) != view.shape + view.ndim;
  if (view.data == nullptr && !empty) return std::nullopt;
  return view;
}

// One past the last byte that the rows touch.
const char* end_of(const RowsView& view) {
  if (view.rows == 0 || view.cols == 0) return view.data;
  return view.data + ((view.rows - 1) * view.stride + view.cols) * view.item;
}

}  // namespace

TensorReader::TensorReader(const py::module_& torch) {
  // The types outlive the module: torch is never unloaded.
  const py::object tensor = torch.attr("Tensor");
  tensor_type_ = type_of(tensor);
  parameter_type_ = type_of(torch.attr("nn").attr("Parameter"));
  if (py::hasattr(tensor, "__dlpack_c_exchange_api__")) {
    const py::object capsule = tensor.attr("__dlpack_c_exchange_api__");
    const auto* table = static_cast<const dlpack::ExchangeApi*>(
        PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (table == nullptr) {
      PyErr_Clear();
    } else if (table->header.version.major == dlpack::kMajorVersion) {
      table_ = table;
    }
  }
}

std::optional<TensorView> TensorReader::read(py::handle object) const {
  PyTypeObject* type = Py_TYPE(object.ptr());
  if (type != tensor_type_ && type != parameter_type_) return std::nullopt;
  if (table_ == nullptr) return read_attributes(object);
  dlpack::Tensor raw;
  const auto* table = static_cast<const dlpack::ExchangeApi*>(table_);
  if (table->tensor_from_object(object.ptr(), &raw) != 0) {
    PyErr_Clear();  // sparse, meta and the like: not a strided CPU tensor
    return std::nullopt;
  }
  const std::optional<Kind> kind = kind_of(raw.dtype);
  if (!kind || raw.device.type != dlpack::kCpu || raw.ndim > TensorView::kMaxDims ||
      (raw.strides == nullptr && raw.ndim > 0)) {
    return std::nullopt;
  }
  TensorView view;
  view.kind = *kind;
  view.data = static_cast<char*>(raw.data) + raw.byte_offset;
  view.ndim = raw.ndim;
  std::copy_n(raw.shape, raw.ndim, view.shape);
  std::copy_n(raw.strides, raw.ndim, view.strides);
  return with_memory(view);
}

std::optional<TensorView> TensorReader::read_attributes(py::handle object) const {
  try {
    const auto text = [](const py::object& value) { return py::str(value).cast<std::string>(); };
    if (text(object.attr("device").attr("type")) != "cpu" ||
        text(object.attr("layout")) != "torch.strided") {
      return std::nullopt;
    }
    const std::optional<Kind> kind = kind_of(text(object.attr("dtype")));
    const py::tuple shape = object.attr("shape");
    const py::tuple strides = object.attr("stride")();
    if (!kind || shape.size() > TensorView::kMaxDims) return std::nullopt;
    TensorView view;
    view.kind = *kind;
    view.data = reinterpret_cast<char*>(object.attr("data_ptr")().cast<uintptr_t>());
    view.ndim = static_cast<int>(shape.size());
    for (int d = 0; d < view.ndim; ++d) {
      view.shape[d] = shape[static_cast<size_t>(d)].cast<int64_t>();
      view.strides[d] = strides[static_cast<size_t>(d)].cast<int64_t>();
    }
    return with_memory(view);
  } catch (py::error_already_set&) {
    return std::nullopt;
  }
}

std::optional<RowsView> as_rows(const TensorView& tensor) {
  if (tensor.ndim == 0) return std::nullopt;
  const int last = tensor.ndim - 1;
  RowsView view{tensor.data, 1, tensor.shape[last], tensor.shape[last], kind_size(tensor.kind)};
  // The strides of an empty tensor mean nothing.
  if (std::find(tensor.shape, tensor.shape + last, 0) != tensor.shape + last) {
    view.rows = 0;
    return view;
  }
  if (tensor.shape[last] > 1 && tensor.strides[last] != 1) return std::nullopt;
  bool first = true;
  for (int d = last - 1; d >= 0; --d) {
    const int64_t size = tensor.shape[d];
    if (size == 1) continue;
    if (first) {
      view.stride = tensor.strides[d];
      first = false;
    } else if (tensor.strides[d] != view.stride * view.rows) {
      return std::nullopt;
    }
    view.rows *= size;
  }
  return view;
}

const void* as_vector(const TensorView& tensor, int64_t size) {
  if (tensor.ndim != 1 || tensor.shape[0] != size) return nullptr;
  if (size > 1 && tensor.strides[0] != 1) return nullptr;
  return tensor.data;
}

bool is_dense(const TensorView& tensor) {
  int64_t expected = 1;
  for (int d = tensor.ndim - 1; d >= 0; --d) {
    if (tensor.shape[d] > 1 && tensor.strides[d] != expected) return false;
    expected *= tensor.shape[d];
  }
  return true;
}

bool same_shape(const TensorView& a, const TensorView& b) {
  return a.ndim == b.ndim && std::equal(a.shape, a.shape + a.ndim, b.shape);
}

std::optional<DType> float_dtype(Kind kind) {
  switch (kind) {
    case Kind::kFloat32:
      return DType::kFloat32;
    case Kind::kBFloat16:
      return DType::kBFloat16;
    case Kind::kFloat16:
      return DType::kFloat16;
    default:
      return std::nullopt;
  }
}

bool apart(const RowsView& a, const RowsView& b) {
  return end_of(a) <= b.data || end_of(b) <= a.data;
}

bool may_write(const RowsView& out, const RowsView& in) {
  return apart(out, in) || (out.data == in.data && out.rows == in.rows && out.cols == in.cols &&
                            out.stride == in.stride && out.item == in.item);
}

bool rows_distinct(const RowsView& out) { return out.rows <= 1 || out.stride >= out.cols; }

}  // namespace leeboard

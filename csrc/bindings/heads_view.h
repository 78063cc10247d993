// What the bindings of attention share: key-value caches and rotary tables.
#pragma once

#include "tensor_view.h"

namespace leeboard {

// A tensor [B, H, N, D] with contiguous channels.
struct HeadsView {
  DType dtype;
  int64_t batch;
  int64_t heads;
  int64_t rows;
  int64_t d;
  Heads view;

  bool is(int64_t b, int64_t h, int64_t n, int64_t channels) const {
    return batch == b && heads == h && rows == n && d == channels;
  }
};

inline std::optional<HeadsView> read_heads(const TensorReader& reader, py::handle object) {
  const auto t = reader.read(object);
  if (!t || t->ndim != 4 || (t->shape[3] > 1 && t->strides[3] != 1)) return std::nullopt;
  const auto dtype = float_dtype(t->kind);
  if (!dtype) return std::nullopt;
  return HeadsView{*dtype,      t->shape[0],
                   t->shape[1], t->shape[2],
                   t->shape[3], {t->data, t->strides[0], t->strides[1], t->strides[2]}};
}

// A rotary table [positions, d / 2].
inline std::optional<RowsView> read_table(const TensorReader& reader, py::handle object,
                                          int64_t d) {
  const auto t = reader.read(object);
  if (!t || t->kind != Kind::kFloat32 || t->ndim != 2 || t->shape[1] * 2 != d) return std::nullopt;
  return as_rows(*t);
}

}  // namespace leeboard

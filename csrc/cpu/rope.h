// Rotary position embedding of one row: channel i is paired with channel i + D/2 (the layout of
// Llama's checkpoints). Whatever a model does to its frequencies is in the table.
#pragma once

#include "simd.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

// Calls put(i, value, n) for the rotated row, vector by vector; `cos` null leaves the row as it is.
// Products are rounded one by one, as in the reference: the keys of a cache are equal bit for bit.
template <class T, class Put>
LB_INLINE void rotate_row(const T* x, int64_t d, const float* cos, const float* sin, Put put) {
  if (cos == nullptr) {
    for_each_vector(d, [&](int64_t i, int64_t n) { put(i, load_n(x + i, n), n); });
    return;
  }
  const int64_t half = d / 2;
  for_each_vector(half, [&](int64_t i, int64_t n) {
    const vf a = load_n(x + i, n);
    const vf b = load_n(x + half + i, n);
    const vf c = load_n(cos + i, n);
    const vf s = load_n(sin + i, n);
    put(i, a * c - b * s, n);
    put(half + i, b * c + a * s, n);
  });
}

// The rotated row, rounded to the type that stores it.
template <class X, class T>
LB_INLINE void rotate_key(const X* x, int64_t d, const float* cos, const float* sin, T* out) {
  rotate_row(x, d, cos, sin, [&](int64_t i, vf value, int64_t n) { store_n(out + i, value, n); });
}

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

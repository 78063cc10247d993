// Dot products of a few prepared activation rows with many weight rows in any format.
//
// Activations wait in float32, each row padded with zeros to packed_width(k), in the order in which
// the weights arrive: packed_position<bf16> for bfloat16 weights, their own for all others.
#pragma once

#include "level.h"
#include "weight_format.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

// Calls visit(v, count, products) for every few weight rows of [begin, end), count <=
// kPanelFeatures and products[m * kPanelFeatures + i] = packed[m] . weight[v + i]. `products` has
// room for rows * kPanelFeatures, rows <= kLinearMaxRows. A product does not depend on the other
// rows, nor on how the weight rows are cut.
template <class Visit>
LB_INLINE void multiply_panel(const WeightMatrix& weight, const float* packed,
                              int64_t packed_stride, int64_t rows, int64_t begin, int64_t end,
                              float* products, Visit visit) {
  int64_t v = begin;
  while (v < end) {
    const int64_t count = end - v < kPanelFeatures ? 1 : kPanelFeatures;
    panel_products(weight, packed, packed_stride, rows, v, count, products);
    visit(v, count, static_cast<const float*>(products));
    v += count;
  }
}

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

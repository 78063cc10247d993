// The backward pass of one block of query rows over the keys that it sees.
//
// A block's rows are cut into strips, the keys into panels; a cell is a strip's part of a panel.
// From the spans each cell is known to be unseen, seen in part, or seen whole: the first costs
// nothing, and only the second needs a mask. Weights p and slopes ds of kBlockKeys keys are held at
// once; the products with k, q and grad_out run over all strips and panels that were computed.
#pragma once

#include <cmath>
#include <cstring>

#include "gqa_backward_tile.h"
#include "gqa_common.h"
#include "vector_math.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

LB_INLINE int64_t panels_of(int64_t keys) { return (keys + kPanel - 1) / kPanel; }

// A key-value head of a segment, in float32. Keys that are padding are zeros.
struct PackedKeys {
  int64_t panels;
  float* keys;      // [panels, d, kPanel]
  float* values;    // [panels, d, kPanel]
  float* rows;      // the keys again, [panels * kPanel, stride]
  int32_t* seen;    // [panels * kPanel], all ones, or zero: padding
  int32_t* padded;  // [panels], whether a panel has padding
};

// A block's rows and what is computed of them; the memory is the thread's own.
struct BlockRows {
  int64_t d;
  int64_t stride;
  const int64_t* offsets;
  const int64_t* spans;
  float scale;
  float softcap;
  float* q;         // [kBlockRows, stride]; rows beyond the last are zeros
  float* grad_out;  // [kBlockRows, stride]
  float* grad_q;    // [kBlockRows, stride], not scaled
  // exp(s - lse) = power exp(s - rest), with power 2^-n and lse = n ln 2 + rest: s - rest is about
  // as large as s, and rounded accordingly. Infinite for rows that see nothing.
  float* rest;      // [kBlockRows]
  float* power;     // [kBlockRows]
  float* delta;     // [kBlockRows]
  float* weights;   // [kBlockRows, kWeightStride]
  float* slopes;    // [kBlockRows, kWeightStride]
  int64_t* token;   // [kBlockRows]
  int64_t* cursor;  // [kBlockRows], the first span that ends behind the panel in work
  // [kStrips, panels]: kTouched if any row of the strip sees any key of the panel, plus the number
  // of tokens that see them all.
  uint8_t* cells;
  int64_t strips;
  int64_t tokens[kStrips];  // of each strip
};

inline constexpr uint8_t kTouched = 0x80;

// Marks the cells of the block; [first, last) are the panels that it touches.
LB_INLINE void mark_cells(BlockRows& block, int64_t panels, int64_t& first, int64_t& last) {
  std::memset(block.cells, 0, static_cast<size_t>(block.strips * panels));
  first = panels;
  last = 0;
  for (int64_t s = 0; s < block.strips; ++s) {
    uint8_t* cells = block.cells + s * panels;
    const int64_t from = block.token[s * kStrip];
    const int64_t to = block.token[s * kStrip + kStrip - 1];
    block.tokens[s] = to - from + 1;
    for (int64_t i = block.offsets[from]; i < block.offsets[to + 1]; ++i) {
      const int64_t begin = block.spans[2 * i];
      const int64_t end = block.spans[2 * i + 1];
      const int64_t open = begin / kPanel;
      const int64_t close = panels_of(end);
      for (int64_t p = open; p < close; ++p) cells[p] |= kTouched;
      for (int64_t p = panels_of(begin); p < end / kPanel; ++p) ++cells[p];
      first = least(first, open);
      last = close > last ? close : last;
    }
  }
}

// Which keys of a panel the rows of a strip see.
LB_INLINE void mask_cell(const BlockRows& block, const PackedKeys& packed, int64_t strip,
                         int64_t panel, vi (&mask)[kStrip][2]) {
  const int64_t from = panel * kPanel;
  const vi lanes = load_bits<vi>(kLanes);
  for (int64_t m = 0; m < kStrip; ++m) {
    const int64_t row = strip * kStrip + m;
    const int64_t token = block.token[row];
    int64_t& cursor = block.cursor[row];
    const int64_t stop = block.offsets[token + 1];
    while (cursor < stop && block.spans[2 * cursor + 1] <= from) ++cursor;
    vi seen[2] = {};
    for (int64_t i = cursor; i < stop && block.spans[2 * i] < from + kPanel; ++i) {
      const int64_t begin = block.spans[2 * i] - from;
      const int64_t end = least(block.spans[2 * i + 1] - from, kPanel);
      const vi low = vi{} + static_cast<int32_t>(begin > 0 ? begin : 0);
      const vi high = vi{} + static_cast<int32_t>(end);
      for (int n = 0; n < 2; ++n) {
        const vi lane = lanes + n * W;
        seen[n] |= (lane >= low) & (lane < high);
      }
    }
    for (int n = 0; n < 2; ++n) {
      mask[m][n] = seen[n] & load_bits<vi>(packed.seen + from + n * W);
    }
  }
}

// Products of a strip's rows with a panel. Sums of few channels at a time, then their sum: one
// running sum over 256 channels is several times less accurate.
LB_INLINE void multiply_panel(const float* rows, int64_t stride, const float* panel, int64_t d,
                              vf (&totals)[kStrip][2]) {
  constexpr int64_t kChannels = W == 4 ? 16 : 32;
#pragma GCC unroll 8
  for (int m = 0; m < kStrip; ++m) totals[m][0] = totals[m][1] = vf{};
  for (int64_t j = 0; j < d; j += kChannels) {
    vf sums[kStrip][2] = {};
    multiply<kStrip, 2>(rows + j, stride, 1, panel + j * kPanel, kPanel, least(kChannels, d - j),
                        sums);
#pragma GCC unroll 8
    for (int m = 0; m < kStrip; ++m) {
#pragma GCC unroll 2
      for (int n = 0; n < 2; ++n) totals[m][n] += sums[m][n];
    }
  }
}

// Weights and slopes of one cell. `mask` is null where every row sees every key.
template <bool capped>
LB_OUTLINE void compute_cell(const BlockRows& block, const float* keys, const float* values,
                             int64_t strip, const vi (*mask)[2], float* weights, float* slopes) {
  const int64_t row = strip * kStrip;
  vf products[kStrip][2];
  multiply_panel(block.q + row * block.stride, block.stride, keys, block.d, products);
  for (int m = 0; m < kStrip; ++m) {
    const vf rest = splat(block.rest[row + m]);
    const vf power = splat(block.power[row + m]);
    for (int n = 0; n < 2; ++n) {
      const int64_t at = m * kWeightStride + n * W;
      vf score = products[m][n] * splat(block.scale);
      if constexpr (capped) {
        const vf bent = vector_tanh(score / splat(block.softcap));
        score = splat(block.softcap) * bent;
        store(slopes + at, fma(-bent, bent, splat(1.0f)));
      }
      vf weight = vector_exp(score - rest) * power;
      if (mask != nullptr) weight = mask[m][n] ? weight : vf{};
      store(weights + at, weight);
    }
  }
  multiply_panel(block.grad_out + row * block.stride, block.stride, values, block.d, products);
  for (int m = 0; m < kStrip; ++m) {
    const vf delta = splat(block.delta[row + m]);
    for (int n = 0; n < 2; ++n) {
      const int64_t at = m * kWeightStride + n * W;
      vf slope = load(weights + at) * (products[m][n] - delta);
      if constexpr (capped) slope *= load(slopes + at);
      store(slopes + at, slope);
    }
  }
}

LB_INLINE void clear_cell(float* weights, float* slopes) {
  for (int m = 0; m < kStrip; ++m) {
    for (int n = 0; n < 2; ++n) {
      store(weights + m * kWeightStride + n * W, vf{});
      store(slopes + m * kWeightStride + n * W, vf{});
    }
  }
}

// Adds to grad_q of the block, and to grad_k and grad_v [panels * kPanel, stride]. The scale is
// left out of grad_q and grad_k: it would round every addend.
template <bool capped>
void backward_block(BlockRows& block, const PackedKeys& packed, float* grad_k, float* grad_v) {
  const int64_t d = block.d;
  const int64_t stride = block.stride;
  int64_t begin = 0;
  int64_t end = 0;
  mark_cells(block, packed.panels, begin, end);
  for (int64_t at = begin; at < end; at += kBlockPanels) {
    const int64_t count = least(kBlockPanels, end - at);
    // The strips from the first to the last that see a panel; those in between may not.
    int64_t first[kBlockPanels];
    int64_t last[kBlockPanels];
    bool seen = false;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t panel = at + i;
      const uint8_t* cells = block.cells + panel;
      int64_t from = 0;
      int64_t to = block.strips;
      while (from < to && cells[from * packed.panels] == 0) ++from;
      while (from < to && cells[(to - 1) * packed.panels] == 0) --to;
      first[i] = from;
      last[i] = to;
      seen |= from < to;
      const bool padded = packed.padded[panel] != 0;
      for (int64_t s = from; s < to; ++s) {
        const uint8_t cell = cells[s * packed.panels];
        const int64_t corner = s * kStrip * kWeightStride + i * kPanel;
        float* weights = block.weights + corner;
        float* slopes = block.slopes + corner;
        if (cell == 0) {
          clear_cell(weights, slopes);
          continue;
        }
        const bool partly = padded || cell != kTouched + block.tokens[s];
        vi mask[kStrip][2];
        if (partly) mask_cell(block, packed, s, panel, mask);
        const int64_t start = panel * kPanel * d;
        compute_cell<capped>(block, packed.keys + start, packed.values + start, s,
                             partly ? mask : nullptr, weights, slopes);
      }
    }
    if (!seen) continue;
    for (int64_t s = 0; s < block.strips; ++s) {
      const uint8_t* cells = block.cells + s * packed.panels + at;
      for (int64_t i = 0; i < count;) {
        int64_t run = 0;
        while (i + run < count && cells[i + run] != 0) ++run;
        if (run > 0) {
          add_rows<kStrip>(block.slopes + s * kStrip * kWeightStride + i * kPanel,
                           packed.rows + (at + i) * kPanel * stride, stride, run * kPanel, d,
                           block.grad_q + s * kStrip * stride);
        }
        i += run + 1;
      }
    }
    for (int64_t i = 0; i < count;) {
      int64_t run = 1;
      while (i + run < count && first[i + run] == first[i] && last[i + run] == last[i]) ++run;
      const int64_t row = first[i] * kStrip;
      const int64_t rows = (last[i] - first[i]) * kStrip;
      if (rows > 0) {
        const int64_t corner = row * kWeightStride + i * kPanel;
        const int64_t to = (at + i) * kPanel * stride;
        add_columns(block.weights + corner, run * kPanel, block.grad_out + row * stride, stride,
                    rows, d, grad_v + to);
        add_columns(block.slopes + corner, run * kPanel, block.q + row * stride, stride, rows, d,
                    grad_k + to);
      }
      i += run;
    }
  }
}

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

// Attention of one block of query rows over the keys that it sees.
//
// The block's rows are cut into strips, the keys into panels; a cell is a strip's part of a panel.
// From the spans each cell is known to be unseen, seen in part, or seen whole: the first costs
// nothing, and only the second needs a mask. Strips go through the keys window by window, so that
// the panels of a window stay in the cache, and keep a running softmax.
#pragma once

#include "gqa_pack.h"
#include "level.h"
#include "vector_math.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

inline constexpr int kBlockRows = kGqaBlockRows;
inline constexpr int kStrips = kBlockRows / kRows;
static_assert(kBlockRows % kRows == 0 && kGqaPackKeys % kPanel == 0);

// Consecutive rows of a strip that see the same keys: those of one token.
struct Token {
  const int64_t* span;  // the first that ends behind the panels in work
  const int64_t* stop;
  int64_t first_row;
  int64_t end_row;
};

// A block's rows and what is computed of them; the memory is the thread's own.
struct BlockRows {
  int64_t rows;
  int64_t strips;
  int64_t head[kBlockRows];
  int64_t token[kBlockRows];
  int64_t token_count[kStrips];
  Token tokens[kStrips][kRows];
  Softmax softmax[kStrips];
  float* q;        // [kStrips, steps, kRows]
  float* sums;     // [kStrips, kRows, stride]
  float* scores;   // [kRows, kWindow]
  uint8_t* cells;  // [kStrips, panels]
};

// A strip that has any sight of a panel, plus the number of its tokens that see it whole.
inline constexpr uint8_t kTouched = 0x80;

template <bool pairs>
LB_INLINE BlockRows* block_rows(int64_t d, int64_t keys, Memory& memory) {
  auto* block = memory.take<BlockRows>(1);
  float* q = memory.take(kBlockRows * steps_of<pairs>(d));
  float* sums = memory.take(kBlockRows * whole_vectors(d));
  float* scores = memory.take(kRows * kWindow);
  uint8_t* cells = memory.take<uint8_t>(kStrips * panels_of(keys));
  if (block != nullptr) {
    block->q = q;
    block->sums = sums;
    block->scores = scores;
    block->cells = cells;
  }
  return block;
}

struct RowPlace {
  int64_t head;
  int64_t token;
  const int64_t* spans;  // pairs [begin, end)
  const int64_t* stop;
};

// Loads `rows` rows; locate(row) gives what each of them is.
template <class T, class Locate>
LB_INLINE void load_block(const SparseGqa& op, const Segment& segment, int64_t rows, float scale,
                          Locate locate, BlockRows& block) {
  const int64_t steps = steps_of<kPairs<T>>(op.d);
  block.rows = rows;
  block.strips = (rows + kRows - 1) / kRows;
  for (int64_t s = 0; s < block.strips; ++s) {
    int64_t count = 0;
    Token* tokens = block.tokens[s];
    for (int64_t m = 0; m < kRows; ++m) {
      const int64_t row = s * kRows + m;
      float* to = block.q + s * steps * kRows + m;
      if (row >= rows) {
        clear_words<kRows>(steps, to);
        continue;
      }
      const RowPlace place = locate(row);
      block.head[row] = place.head;
      block.token[row] = place.token;
      if (count > 0 && tokens[count - 1].span == place.spans &&
          tokens[count - 1].stop == place.stop) {
        tokens[count - 1].end_row = m + 1;
      } else {
        tokens[count++] = {place.spans, place.stop, m, m + 1};
      }
      pack_words<T, kRows>(
          row_at<const T>(op.q, segment.batch, place.head, segment.query + place.token), op.d,
          scale, to);
    }
    // What the rows beyond the last compute is thrown away.
    tokens[count - 1].end_row = kRows;
    block.token_count[s] = count;
  }
}

// Marks the cells of the block; [first, last) are the panels that it touches.
LB_INLINE void mark_cells(BlockRows& block, int64_t panels, int64_t& first, int64_t& last) {
  std::memset(block.cells, 0, static_cast<size_t>(block.strips * panels));
  first = panels;
  last = 0;
  for (int64_t s = 0; s < block.strips; ++s) {
    uint8_t* cells = block.cells + s * panels;
    for (int64_t t = 0; t < block.token_count[s]; ++t) {
      const Token& token = block.tokens[s][t];
      for (const int64_t* span = token.span; span < token.stop; span += 2) {
        const int64_t open = span[0] / kPanel;
        const int64_t close = panels_of(span[1]);
        const int64_t whole = panels_of(span[0]);
        cells[open] |= kTouched;
        cells[close - 1] |= kTouched;
        for (int64_t p = whole; p < span[1] / kPanel; ++p) {
          cells[p] = static_cast<uint8_t>((cells[p] | kTouched) + 1);
        }
        first = least(first, open);
        last = close > last ? close : last;
      }
    }
  }
}

// Hides the keys of a panel that rows of a strip do not see; [begin, end) are those that any does.
LB_OUTLINE void hide_keys(Token* tokens, int64_t count, const int32_t* present, int64_t panel,
                          float* scores, int64_t& begin, int64_t& end) {
  const int64_t from = panel * kPanel;
  const vi lanes = load_bits<vi>(kLanes);
  begin = kPanel;
  end = 0;
  for (int64_t t = 0; t < count; ++t) {
    Token& token = tokens[t];
    while (token.span < token.stop && token.span[1] <= from) token.span += 2;
    vi seen[2] = {};
    for (const int64_t* span = token.span; span < token.stop && span[0] < from + kPanel;
         span += 2) {
      const int64_t low = span[0] > from ? span[0] - from : 0;
      const int64_t high = least(span[1] - from, kPanel);
      begin = least(begin, low);
      end = high > end ? high : end;
#pragma GCC unroll 2
      for (int n = 0; n < 2; ++n) {
        const vi lane = lanes + n * W;
        seen[n] |= (lane >= static_cast<int32_t>(low)) & (lane < static_cast<int32_t>(high));
      }
    }
    if (present != nullptr) {
      for (int n = 0; n < 2; ++n) seen[n] &= load_bits<vi>(present + from + n * W);
    }
    for (int64_t m = token.first_row; m < token.end_row; ++m) {
      float* row = scores + m * kWindow;
      for (int n = 0; n < 2; ++n) {
        store(row + n * W, seen[n] ? load(row + n * W) : splat(-INFINITY));
      }
    }
  }
}

// Scores of the cap's domain, s / cap, become logits.
LB_OUTLINE void cap_scores(float* scores, float cap) {
  for (int m = 0; m < kRows; ++m) {
    for (int n = 0; n < 2; ++n) {
      float* at = scores + m * kWindow + n * W;
      store(at, vector_tanh(load(at)) * splat(cap * kLog2E));
    }
  }
}

template <class T>
LB_INLINE void attend_block(const SparseGqa& op, const PackedKeys& packed, BlockRows& block) {
  constexpr bool pairs = kPairs<T>;
  const int64_t steps = steps_of<pairs>(op.d);
  const int64_t stride = packed.stride;
  const float scale = query_scale(op);
  const float factor = logit_factor(op);
  int64_t first = 0;
  int64_t last = 0;
  mark_cells(block, packed.panels, first, last);
  std::memset(block.sums, 0, static_cast<size_t>(block.strips * kRows * stride) * sizeof(float));
  for (int64_t s = 0; s < block.strips; ++s) {
    for (float& peak : block.softmax[s].peak) peak = -INFINITY;
    std::memset(block.softmax[s].total, 0, sizeof block.softmax[s].total);
  }
  for (int64_t at = first; at < last; at += kWindowPanels) {
    const int64_t stop = least(at + kWindowPanels, last);
    for (int64_t s = 0; s < block.strips; ++s) {
      const uint8_t* cells = block.cells + s * packed.panels;
      Window window;
      window.count = 0;
      for (int64_t p = at; p < stop; ++p) {
        if (cells[p] == 0) continue;
        const int64_t i = window.count;
        float* scores = block.scores + i * kPanel;
        score_panel<pairs>(block.q + s * steps * kRows, packed.keys + p * steps * kPanel, steps,
                           scale, scores);
        if (op.softcap != 0.0f) cap_scores(scores, op.softcap);
        window.panel[i] = p;
        window.begin[i] = 0;
        window.end[i] = kPanel;
        if (cells[p] != kTouched + block.token_count[s] ||
            (packed.padded != nullptr && packed.padded[p] != 0)) {
          hide_keys(block.tokens[s], block.token_count[s], packed.seen, p, scores, window.begin[i],
                    window.end[i]);
        }
        ++window.count;
      }
      if (window.count == 0) continue;
      float alpha[(kRows + W - 1) / W * W];
      soften<pairs>(block.scores, window.count, factor, block.softmax[s], alpha);
      float* sums = block.sums + s * kRows * stride;
      int64_t j = 0;
      for (; j + W < stride; j += 2 * W) {
        value_tile<pairs, 2>(block.scores, window, packed.values + j, stride, alpha, sums + j,
                             stride);
      }
      if (j < stride) {
        value_tile<pairs, 1>(block.scores, window, packed.values + j, stride, alpha, sums + j,
                             stride);
      }
    }
  }
}

// Rounds the block's rows, sinks included, and writes them.
template <class T>
LB_INLINE void write_block(const SparseGqaForward& args, const Segment& segment,
                           const BlockRows& block, int64_t stride) {
  const SparseGqa& op = args.op;
  const double unit = logit_unit(op);
  for (int64_t row = 0; row < block.rows; ++row) {
    const Softmax& state = block.softmax[row / kRows];
    const int64_t head = block.head[row];
    float peak = state.peak[row % kRows];
    float total = horizontal_sum(load(state.total + row % kRows * W));
    float* sums = block.sums + row * stride;
    if (op.own_count > 0) {
      const GqaRow place{segment.batch, head, segment.query + block.token[row]};
      ttt_attention_merge(op, place, sums, peak, total);
    }
    float factor = peak == -INFINITY ? 0.0f : 1.0f / total;
    if (op.sink_logits != nullptr) {
      const auto sink = static_cast<float>(op.sink_logits[head] / unit);
      const float most = sink > peak ? sink : peak;
      if (most != -INFINITY) {
        const float share = __builtin_exp2f(peak - most);
        total = total * share + __builtin_exp2f(sink - most);
        factor = share / total;
        peak = most;
      }
    }
    if (args.lse != nullptr) {
      args.lse[(segment.batch * args.query_heads + head) * args.queries + segment.query +
               block.token[row]] =
          peak == -INFINITY ? -INFINITY : static_cast<float>(peak * unit + __builtin_log(total));
    }
    T* to = row_at<T>(args.out, segment.batch, head, segment.query + block.token[row]);
    for_each_vector(op.d, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
      store_n(to + j, load(sums + j) * splat(factor), n);
    });
  }
}

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

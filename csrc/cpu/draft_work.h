// Sizes and workspace of a whole draft.
#pragma once

#include "attend.h"
#include "team.h"
#include "top_values.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

// Output features that a member claims at once.
inline constexpr int64_t kFeatureUnit = 32;
inline constexpr int64_t kPhases = 10;

LB_INLINE int64_t pieces(int64_t n, int64_t each) { return (n + each - 1) / each; }

// Activations [rows, stride] in the order in which weights arrive: `split` for bfloat16 weights,
// `natural` for all others. Only those are filled whose consumers exist.
struct Packed {
  float* natural;
  float* split;
  int64_t stride;
};

struct Sizes {
  int64_t beams;       // rows of a sequence in a later step
  int64_t rows;        // of all sequences
  int64_t own;         // rows that a sequence computes in all
  int64_t candidates;  // nodes that a sequence scores in all
  int64_t heads_out;   // features of q, k and v
  int64_t chunks;      // of the cache, and one for the own rows
  int64_t group;       // query heads of a key-value head
  int64_t query_floats;
  int64_t state_floats;
  int64_t blocks;  // of the vocabulary

  explicit LB_INLINE Sizes(const DraftChain& a)
      : beams(a.steps > 1 ? a.topk : 1),
        rows(a.batch * beams),
        own(1 + (a.steps - 1) * a.topk),
        candidates(a.topk + (a.steps - 1) * a.topk * a.topk),
        heads_out((a.heads + 2 * a.kv_heads) * a.d),
        chunks(pieces(a.longest, kAttendChunk) + 1),
        group(a.heads / a.kv_heads),
        query_floats(beams * group * attend_width(a.d)),
        state_floats(attend_scratch_floats(beams * group, a.d)),
        blocks(pieces(a.vocab, kTopBlock)) {}
};

// Row r is beam r % beams of sequence r / beams.
struct Work {
  Counter* counters;  // [steps, kPhases], and one for the end
  Packed entered;     // [rows, 2H], the layer's input
  Packed attended;    // [rows, heads * d]
  Packed middle;      // [rows, H], normed, before the feed-forward block and before the head
  Packed gated;       // [rows, I]
  float* residual;    // [rows, H]
  float* left;        // [rows, H], the residual stream after the layer; then what is fed back
  float* fed;         // [rows, H]
  float* projected;   // [rows, heads_out]
  float* queries;     // [batch, kv_heads, chunks, query_floats]
  float* attention;   // [batch, kv_heads, chunks, state_floats]
  char* own_keys;     // [batch, kv_heads, own, d] of the cache's dtype
  char* own_values;
  float* block_value;    // [blocks, rows, topk], largest first
  int64_t* block_index;  // [blocks, rows, topk]
  float* block_sum;      // [blocks, rows], of exponentials above the block's largest
  int64_t* row_token;    // [rows]
  float* row_score;      // [rows]
  int64_t* row_node;     // [rows], candidate that the row continues
  int64_t* row_own;      // [rows, steps], own rows that it sees, itself last
  int64_t* spare_own;    // [rows, steps]
  int64_t* found_token;  // [batch, candidates]
  int64_t* found_parent;
  float* found_score;
  int64_t* kept;  // [batch, candidates], a candidate's number among those kept
  int64_t bytes;
  int64_t zeroed;

  LB_INLINE Work(const DraftChain& a, const Sizes& s) {
    char* at = a.workspace;
    auto take = [&]<class T>(T*& p, int64_t count) __attribute__((always_inline)) {
      p = reinterpret_cast<T*>(at);
      at += pieces(count * static_cast<int64_t>(sizeof(T)), 64) * 64;
    };
    auto panel = [&](Packed& p, int64_t k) __attribute__((always_inline)) {
      p.stride = packed_width(k);
      take(p.natural, s.rows * p.stride);
      take(p.split, s.rows * p.stride);
    };
    take(counters, a.steps * kPhases + 1);
    // The panels' padding beside it is never written, and must be zero.
    panel(entered, 2 * a.hidden);
    panel(attended, a.heads * a.d);
    panel(middle, a.hidden);
    panel(gated, a.intermediate);
    zeroed = at - a.workspace;
    const int64_t item = a.dtype == DType::kFloat32 ? 4 : 2;
    const int64_t tasks = a.batch * a.kv_heads * s.chunks;
    take(residual, s.rows * a.hidden);
    take(left, s.rows * a.hidden);
    take(fed, s.rows * a.hidden);
    take(projected, s.rows * s.heads_out);
    take(queries, tasks * s.query_floats);
    take(attention, tasks * s.state_floats);
    take(own_keys, a.batch * a.kv_heads * s.own * a.d * item);
    take(own_values, a.batch * a.kv_heads * s.own * a.d * item);
    take(block_value, s.blocks * s.rows * a.topk);
    take(block_index, s.blocks * s.rows * a.topk);
    take(block_sum, s.blocks * s.rows);
    take(row_token, s.rows);
    take(row_score, s.rows);
    take(row_node, s.rows);
    take(row_own, s.rows * a.steps);
    take(spare_own, s.rows * a.steps);
    take(found_token, a.batch * s.candidates);
    take(found_parent, a.batch * s.candidates);
    take(found_score, a.batch * s.candidates);
    take(kept, a.batch * s.candidates);
    bytes = at - a.workspace;
  }
};

// One step of the draft: what every phase needs.
struct Step {
  const DraftChain& args;
  const Sizes& sizes;
  const Work& work;
  int64_t index;  // from 0
  int64_t beams;  // rows of a sequence now

  LB_INLINE int64_t rows() const { return args.batch * beams; }
  // Where a beam's row lies among those that its sequence computes.
  LB_INLINE int64_t own_row(int64_t beam) const {
    return index == 0 ? 0 : 1 + (index - 1) * args.topk + beam;
  }
};

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

// What the head's products become: the best tokens of every row, the beams of the next step, and at
// the end the nodes that are kept. Everything is ordered by value, then by age; NaN is the largest,
// as in torch.sort.
#pragma once

#include <cmath>

#include "draft_work.h"
#include "top_values.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

// The best tokens of a sequence's rows, from those of the blocks, and the log-probabilities of
// their paths: added to its candidates.
LB_OUTLINE void find_candidates(const Step& step, int64_t sequence, int64_t first) {
  const DraftChain& a = step.args;
  const Sizes& s = step.sizes;
  const Work& w = step.work;
  const int64_t k = a.topk;
  for (int64_t beam = 0; beam < step.beams; ++beam) {
    const int64_t row = sequence * s.beams + beam;
    const int64_t at = sequence * s.candidates + first + beam * k;
    float* value = w.found_score + at;
    int64_t* index = w.found_token + at;
    int64_t held = 0;
    float most = -INFINITY;
    for (int64_t block = 0; block < s.blocks; ++block) {
      const int64_t from = (block * s.rows + row) * k;
      const int64_t entries = a.vocab - block * kTopBlock;
      for (int64_t i = 0; i < k && i < entries && i < kTopBlock; ++i) {
        keep_top(value, index, held, k, w.block_value[from + i], w.block_index[from + i]);
      }
      most = w.block_value[from] > most ? w.block_value[from] : most;
    }
    float total = 0.0f;
    for (int64_t block = 0; block < s.blocks; ++block) {
      const int64_t from = block * s.rows + row;
      total += w.block_sum[from] * scalar_exp(w.block_value[from * k] - most);
    }
    const float log_sum = std::log(total);
    for (int64_t i = 0; i < k; ++i) {
      // Logits are subtracted first: the difference is small, and so is its rounding.
      value[i] = w.row_score[row] + (value[i] - most - log_sum);
      if (a.d2t != nullptr) index[i] += a.d2t[index[i]];
      w.found_parent[at + i] = w.row_node[row];
    }
  }
}

// The rows of the next step: the best of the newest candidates.
LB_OUTLINE void choose_beams(const Step& step, int64_t sequence, int64_t first) {
  const DraftChain& a = step.args;
  const Sizes& s = step.sizes;
  const Work& w = step.work;
  const int64_t base = sequence * s.candidates + first;
  const int64_t rows = sequence * s.beams;
  float score[kTopMost];
  int64_t candidate[kTopMost];
  int64_t held = 0;
  for (int64_t i = 0; i < step.beams * a.topk; ++i) {
    keep_top(score, candidate, held, a.topk, w.found_score[base + i], i);
  }
  const int64_t seen = step.index + 1;
  std::memcpy(w.spare_own + rows * a.steps, w.row_own + rows * a.steps,
              static_cast<size_t>(step.beams * a.steps) * sizeof(int64_t));
  for (int64_t beam = 0; beam < a.topk; ++beam) {
    const int64_t row = rows + beam;
    const int64_t from = rows + candidate[beam] / a.topk;
    w.row_score[row] = score[beam];
    w.row_token[row] = w.found_token[base + candidate[beam]];
    w.row_node[row] = first + candidate[beam];
    std::memcpy(w.fed + row * a.hidden, w.left + from * a.hidden,
                static_cast<size_t>(a.hidden) * sizeof(float));
    std::memcpy(w.row_own + row * a.steps, w.spare_own + from * a.steps,
                static_cast<size_t>(seen) * sizeof(int64_t));
    w.row_own[row * a.steps + seen] = 1 + step.index * a.topk + beam;
  }
}

// The best candidates of a sequence, in the order in which they arose. A path's score never rises,
// so a kept node's parent is kept.
LB_OUTLINE void keep_nodes(const Step& step, int64_t sequence) {
  const DraftChain& a = step.args;
  const Sizes& s = step.sizes;
  const Work& w = step.work;
  const int64_t base = sequence * s.candidates;
  int64_t* number = w.kept + base;
  for (int64_t i = 0; i < s.candidates; ++i) number[i] = -1;
  for (int64_t n = 0; n < a.nodes; ++n) {
    int64_t best = -1;
    for (int64_t i = 0; i < s.candidates; ++i) {
      if (number[i] < 0 &&
          (best < 0 || beats(w.found_score[base + i], w.found_score[base + best]))) {
        best = i;
      }
    }
    number[best] = 0;
  }
  int64_t out = sequence * a.nodes;
  int64_t next = 0;
  for (int64_t i = 0; i < s.candidates; ++i) {
    if (number[i] < 0) continue;
    number[i] = next++;
    const int64_t parent = w.found_parent[base + i];
    a.tokens[out] = w.found_token[base + i];
    a.parents[out] = parent < 0 ? -1 : number[parent];
    a.scores[out] = w.found_score[base + i];
    ++out;
  }
}

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

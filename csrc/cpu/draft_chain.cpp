// A whole draft in one call: every step is ten phases, each shared by the members of a team, with
// nothing between them but a barrier. Weights are streamed once a step; activations stay in
// float32.
#include "draft_attend.h"
#include "draft_select.h"
#include "glue_row.h"
#include "level.h"
#include "vector_math.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

enum Phase { kEnter, kProject, kAttend, kMerge, kOutput, kNorm, kGate, kDown, kLeave, kHead };

// Embedding and fed-back state, normed side by side: the layer's input.
template <class T>
LB_OUTLINE void enter_row(const Step& step, int64_t row) {
  const DraftChain& a = step.args;
  const Work& w = step.work;
  const bool split = takes_split(a.q) || takes_split(a.k) || takes_split(a.v);
  const bool natural = !takes_split(a.q) || !takes_split(a.k) || !takes_split(a.v);
  float* normed = w.residual + row * a.hidden;
  const T* embedded =
      static_cast<const T*>(a.embedding.data) + w.row_token[row] * a.embedding.stride;
  normed_row(embedded, static_cast<const T*>(a.input_norm), a.eps, a.hidden, normed);
  pack(w.entered, row, 0, normed, a.hidden, natural, split);
  const float* fed = w.fed + row * a.hidden;
  normed_row(fed, static_cast<const T*>(a.hidden_norm), a.eps, a.hidden, normed);
  pack(w.entered, row, a.hidden, normed, a.hidden, natural, split);
  if (!a.norm_before_residual) {
    std::memcpy(normed, fed, static_cast<size_t>(a.hidden) * sizeof(float));
  }
}

// A sequence's first row.
template <class T>
LB_INLINE void begin_sequence(const Step& step, int64_t sequence) {
  const DraftChain& a = step.args;
  const Work& w = step.work;
  const int64_t row = sequence * step.sizes.beams;
  const T* state = static_cast<const T*>(a.state.data) + sequence * a.state.stride;
  for_each_vector(a.hidden, [&](int64_t j, int64_t n) {
    store_n(w.fed + row * a.hidden + j, load_n(state + j, n), n);
  });
  w.row_token[row] = a.token[sequence];
  w.row_score[row] = 0.0f;
  w.row_node[row] = -1;
  w.row_own[row * a.steps] = 0;
  enter_row<T>(step, row);
}

// Candidates that a sequence has scored before a step.
LB_INLINE int64_t candidates_before(const DraftChain& a, int64_t step) {
  return step == 0 ? 0 : a.topk + (step - 1) * a.topk * a.topk;
}

LB_OUTLINE void project_unit(const Step& step, int64_t unit) {
  const DraftChain& a = step.args;
  const Work& w = step.work;
  const int64_t counts[3] = {a.heads * a.d, a.kv_heads * a.d, a.kv_heads * a.d};
  const WeightMatrix* weights[3] = {&a.q, &a.k, &a.v};
  int64_t offset = 0;
  for (int i = 0; i < 3; ++i) {
    const int64_t units = pieces(counts[i], kFeatureUnit);
    if (unit < units) {
      const int64_t begin = unit * kFeatureUnit;
      const int64_t end = begin + kFeatureUnit < counts[i] ? begin + kFeatureUnit : counts[i];
      multiply(step, *weights[i], w.entered, begin, end,
               [&](int64_t row, int64_t v, int64_t n, const float* values) {
                 float* out = w.projected + row * step.sizes.heads_out + offset + v;
                 std::memcpy(out, values, static_cast<size_t>(n) * sizeof(float));
               });
      return;
    }
    unit -= units;
    offset += counts[i];
  }
}

LB_INLINE int64_t project_units(const DraftChain& a) {
  return pieces(a.heads * a.d, kFeatureUnit) + 2 * pieces(a.kv_heads * a.d, kFeatureUnit);
}

LB_OUTLINE void output_unit(const Step& step, int64_t unit) {
  const DraftChain& a = step.args;
  const int64_t begin = unit * kFeatureUnit;
  const int64_t end = begin + kFeatureUnit < a.hidden ? begin + kFeatureUnit : a.hidden;
  multiply(step, a.o, step.work.attended, begin, end,
           [&](int64_t row, int64_t v, int64_t n, const float* values) {
             float* out = step.work.residual + row * a.hidden + v;
             for (int64_t i = 0; i < n; ++i) out[i] += values[i];
           });
}

template <class T>
LB_INLINE void norm_row(const Step& step, int64_t row) {
  const DraftChain& a = step.args;
  const Work& w = step.work;
  // `left` is free until the feed-forward block ends.
  float* normed = w.left + row * a.hidden;
  normed_row(w.residual + row * a.hidden, static_cast<const T*>(a.post_norm), a.eps, a.hidden,
             normed);
  pack(w.middle, row, 0, normed, a.hidden, !takes_split(a.gate) || !takes_split(a.up),
       takes_split(a.gate) || takes_split(a.up));
}

LB_OUTLINE void gate_unit(const Step& step, int64_t unit) {
  const DraftChain& a = step.args;
  const Work& w = step.work;
  const int64_t begin = unit * kFeatureUnit;
  const int64_t end = begin + kFeatureUnit < a.intermediate ? begin + kFeatureUnit : a.intermediate;
  // The gate's products wait where their final values go.
  float* waiting = w.gated.natural;
  multiply(step, a.gate, w.middle, begin, end,
           [&](int64_t row, int64_t v, int64_t n, const float* values) {
             std::memcpy(waiting + row * w.gated.stride + v, values,
                         static_cast<size_t>(n) * sizeof(float));
           });
  multiply(step, a.up, w.middle, begin, end,
           [&](int64_t row, int64_t v, int64_t n, const float* values) {
             float* at = waiting + row * w.gated.stride + v;
             swiglu(at, values, n, at);
             if (takes_split(a.down)) pack(w.gated, row, v, at, n, false, true);
           });
}

LB_OUTLINE void down_unit(const Step& step, int64_t unit) {
  const DraftChain& a = step.args;
  const Work& w = step.work;
  const int64_t begin = unit * kFeatureUnit;
  const int64_t end = begin + kFeatureUnit < a.hidden ? begin + kFeatureUnit : a.hidden;
  multiply(step, a.down, w.gated, begin, end,
           [&](int64_t row, int64_t v, int64_t n, const float* values) {
             const float* residual = w.residual + row * a.hidden + v;
             float* out = w.left + row * a.hidden + v;
             for (int64_t i = 0; i < n; ++i) out[i] = residual[i] + values[i];
           });
}

// The output norm; leaves what is fed back in `left`.
template <class T>
LB_INLINE void leave_row(const Step& step, int64_t row) {
  const DraftChain& a = step.args;
  const Work& w = step.work;
  float* x = w.left + row * a.hidden;
  float* normed = w.residual + row * a.hidden;
  normed_row(x, static_cast<const T*>(a.norm), a.eps, a.hidden, normed);
  pack(w.middle, row, 0, normed, a.hidden, !takes_split(a.head), takes_split(a.head));
  if (a.norm_output) std::memcpy(x, normed, static_cast<size_t>(a.hidden) * sizeof(float));
  const int64_t sequence = row / step.sizes.beams;
  T* out = static_cast<T*>(a.states) +
           (sequence * step.sizes.own + step.own_row(row % step.sizes.beams)) * a.hidden;
  for_each_vector(a.hidden, [&](int64_t j, int64_t n) { store_n(out + j, load_n(x + j, n), n); });
}

// The best of one block of the vocabulary, and its sum of exponentials.
LB_OUTLINE void head_unit(const Step& step, int64_t block) {
  const DraftChain& a = step.args;
  const Sizes& s = step.sizes;
  const Work& w = step.work;
  const int64_t begin = block * kTopBlock;
  const int64_t end = begin + kTopBlock < a.vocab ? begin + kTopBlock : a.vocab;
  float logits[kLinearMaxRows * kTopBlock];
  for_row_groups(step, [&](int64_t first, int64_t count) {
    const int64_t apart = row_distance(step);
    multiply_rows(step, a.head, w.middle, first, count, begin, end,
                  [&](int64_t row, int64_t v, int64_t n, const float* values) {
                    float* at = logits + (row / apart - first) * kTopBlock + v - begin;
                    std::memcpy(at, values, static_cast<size_t>(n) * sizeof(float));
                  });
    for (int64_t m = 0; m < count; ++m) {
      const int64_t at = block * s.rows + (first + m) * apart;
      reduce_block(logits + m * kTopBlock, end - begin, begin, a.topk, w.block_value + at * a.topk,
                   w.block_index + at * a.topk, w.block_sum + at);
    }
  });
}

template <class T>
void run(const DraftChain& args, Team& team) {
  const Sizes sizes(args);
  const Work work(args, sizes);
  for (int64_t index = 0; index < args.steps; ++index) {
    const Step step{args, sizes, work, index, index == 0 ? 1 : sizes.beams};
    Counter* counters = work.counters + index * kPhases;
    auto phase = [&](Phase which, int64_t units, auto unit) __attribute__((always_inline)) {
      share_phase(team, counters[which], units, unit);
    };
    auto rows = [&](Phase which, auto row) __attribute__((always_inline)) {
      const int64_t apart = row_distance(step);
      phase(which, step.rows(), [&](int64_t i) { row(i * apart); });
    };
    phase(kEnter, args.batch, [&](int64_t sequence) {
      if (index == 0) return begin_sequence<T>(step, sequence);
      const Step before{args, sizes, work, index - 1, index == 1 ? 1 : sizes.beams};
      const int64_t first = candidates_before(args, index - 1);
      find_candidates(before, sequence, first);
      choose_beams(before, sequence, first);
      for (int64_t beam = 0; beam < sizes.beams; ++beam) {
        enter_row<T>(step, sequence * sizes.beams + beam);
      }
    });
    phase(kProject, project_units(args), [&](int64_t unit) { project_unit(step, unit); });
    phase(kAttend, args.batch * args.kv_heads * sizes.chunks,
          [&](int64_t unit) { attend_unit<T>(step, unit); });
    phase(kMerge, args.batch * args.kv_heads, [&](int64_t unit) { merge_unit<T>(step, unit); });
    const int64_t units = pieces(args.hidden, kFeatureUnit);
    phase(kOutput, units, [&](int64_t unit) { output_unit(step, unit); });
    rows(kNorm, [&](int64_t row) { norm_row<T>(step, row); });
    phase(kGate, pieces(args.intermediate, kFeatureUnit),
          [&](int64_t unit) { gate_unit(step, unit); });
    phase(kDown, units, [&](int64_t unit) { down_unit(step, unit); });
    rows(kLeave, [&](int64_t row) { leave_row<T>(step, row); });
    phase(kHead, sizes.blocks, [&](int64_t block) { head_unit(step, block); });
  }
  const Step last{args, sizes, work, args.steps - 1, args.steps == 1 ? 1 : sizes.beams};
  share_phase(team, work.counters[args.steps * kPhases], args.batch, [&](int64_t sequence) {
    find_candidates(last, sequence, candidates_before(args, args.steps - 1));
    keep_nodes(last, sequence);
  });
}

}  // namespace

int64_t draft_chain_bytes(const DraftChain& args, int64_t* zeroed) {
  const Sizes sizes(args);
  const Work work(args, sizes);
  *zeroed = work.zeroed;
  return work.bytes;
}

void draft_chain(const DraftChain& args, Team& team) {
  dispatch_type(args.dtype, [&]<class T>(T) { run<T>(args, team); });
}

}  // namespace leeboard::LEEBOARD_LEVEL

// A whole draft in one call: every step is ten phases, each shared by the members of a team, with
// nothing between them but a barrier. Weights are streamed once a step; activations stay in
// float32.
#include "draft_select.h"
#include "glue_row.h"
#include "level.h"
#include "vector_math.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

enum Phase { kEnter, kProject, kAttend, kMerge, kOutput, kNorm, kGate, kDown, kLeave, kHead };

LB_INLINE bool takes_split(const WeightMatrix& w) { return w.format == WeightFormat::kBFloat16; }

LB_INLINE void pack(const Packed& to, int64_t row, int64_t offset, const float* from, int64_t n,
                    bool natural, bool split) {
  if (natural) {
    std::memcpy(to.natural + row * to.stride + offset, from,
                static_cast<size_t>(n) * sizeof(float));
  }
  if (split) {
    float* at = to.split + row * to.stride;
    for (int64_t i = 0; i < n; ++i) at[packed_position<bf16>(offset + i)] = from[i];
  }
}

// Rows of the first step of a tree are spread out, one a sequence.
LB_INLINE int64_t row_distance(const Step& step) { return step.sizes.beams / step.beams; }

// Calls visit(row, v, n, products) for the products of weight rows [begin, end) with `count` rows
// from the step's row `first` on; count is at most kLinearMaxRows.
template <class Visit>
LB_INLINE void multiply_rows(const Step& step, const WeightMatrix& weight, const Packed& x,
                             int64_t first, int64_t count, int64_t begin, int64_t end,
                             Visit visit) {
  const float* packed = takes_split(weight) ? x.split : x.natural;
  const int64_t apart = row_distance(step);
  float products[kLinearMaxRows * kPanelFeatures];
  multiply_panel(weight, packed + first * apart * x.stride, apart * x.stride, count, begin, end,
                 products, [&](int64_t v, int64_t n, const float* values) {
                   for (int64_t m = 0; m < count; ++m) {
                     visit((first + m) * apart, v, n, values + m * kPanelFeatures);
                   }
                 });
}

// Calls group(first, count) for the step's rows, at most kLinearMaxRows at a time.
template <class Group>
LB_INLINE void for_row_groups(const Step& step, Group group) {
  for (int64_t first = 0; first < step.rows(); first += kLinearMaxRows) {
    const int64_t left = step.rows() - first;
    group(first, left < kLinearMaxRows ? left : kLinearMaxRows);
  }
}

template <class Visit>
LB_INLINE void multiply(const Step& step, const WeightMatrix& weight, const Packed& x,
                        int64_t begin, int64_t end, Visit visit) {
  for_row_groups(step, [&](int64_t first, int64_t count) {
    multiply_rows(step, weight, x, first, count, begin, end, visit);
  });
}

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

template <class T>
LB_OUTLINE void attend_rows(const AttendState& state, const float* queries, const T* keys,
                            int64_t key_stride, const T* values, int64_t value_stride,
                            int64_t begin, int64_t end, int64_t d, const Sight& sight) {
  attend_range<T>(state, queries, keys, key_stride, values, value_stride, begin, end, d, sight);
}

// Attention of one sequence's rows in one key-value head over one chunk of the cache, or over their
// own rows (the last chunk).
template <class T>
LB_OUTLINE void attend_unit(const Step& step, int64_t unit) {
  const DraftChain& a = step.args;
  const Sizes& s = step.sizes;
  const Work& w = step.work;
  const int64_t chunk = unit % s.chunks;
  const int64_t head = unit / s.chunks % a.kv_heads;
  const int64_t sequence = unit / s.chunks / a.kv_heads;
  const int64_t rows = step.beams * s.group;
  const int64_t length = a.lengths[sequence];
  const int64_t position = length + step.index;
  const float* cos = static_cast<const float*>(a.cos.data) + position * a.cos.stride;
  const float* sin = static_cast<const float*>(a.sin.data) + position * a.sin.stride;
  float* queries = w.queries + unit * s.query_floats;
  const int64_t begin = chunk * kAttendChunk;
  const bool own = chunk + 1 == s.chunks;
  const bool empty = !own && begin >= length;
  const AttendState state = attend_begin(w.attention + unit * s.state_floats, rows, a.d, !empty);
  if (empty) return;
  for (int64_t beam = 0; beam < step.beams; ++beam) {
    const float* from = w.projected + (sequence * s.beams + beam) * s.heads_out;
    for (int64_t g = 0; g < s.group; ++g) {
      pack_query<T>(from + (head * s.group + g) * a.d, a.d, cos, sin,
                    1.0f / std::sqrt(static_cast<float>(a.d)),
                    queries + (beam * s.group + g) * state.width);
    }
  }
  Sight sight;
  sight.group = rows;
  if (!own) {
    const T* keys =
        static_cast<const T*>(a.k_cache.data) + sequence * a.k_cache.batch + head * a.k_cache.head;
    const T* values =
        static_cast<const T*>(a.v_cache.data) + sequence * a.v_cache.batch + head * a.v_cache.head;
    const int64_t end = begin + kAttendChunk < length ? begin + kAttendChunk : length;
    sight.first = position;
    sight.window = a.window < 0 ? kNoWindow : a.window;
    sight.sinks = a.sinks;
    attend_rows<T>(state, queries, keys, a.k_cache.row, values, a.v_cache.row, begin, end, a.d,
                   sight);
    return;
  }
  const int64_t base = (sequence * a.kv_heads + head) * s.own * a.d;
  T* keys = reinterpret_cast<T*>(w.own_keys) + base;
  T* values = reinterpret_cast<T*>(w.own_values) + base;
  for (int64_t beam = 0; beam < step.beams; ++beam) {
    const float* from = w.projected + (sequence * s.beams + beam) * s.heads_out + a.heads * a.d;
    const int64_t at = step.own_row(beam) * a.d;
    rotate_key(from + head * a.d, a.d, cos, sin, keys + at);
    const float* value = from + (a.kv_heads + head) * a.d;
    for_each_vector(
        a.d, [&](int64_t j, int64_t n) { store_n(values + at + j, load_n(value + j, n), n); });
  }
  sight.group = s.group;
  sight.first = s.own;
  for (int64_t beam = 0; beam < step.beams; ++beam) {
    const int64_t* seen = w.row_own + (sequence * s.beams + beam) * a.steps;
    const int64_t at = beam * s.group;
    const AttendState mine{state.most + at, state.total + at, state.sums + at * state.width,
                           s.group, state.width};
    if (s.beams == 1) {
      attend_rows<T>(mine, queries, keys, a.d, values, a.d, 0, step.index + 1, a.d, sight);
      continue;
    }
    for (int64_t i = 0; i <= step.index; ++i) {
      attend_rows<T>(mine, queries + at * state.width, keys, a.d, values, a.d, seen[i], seen[i] + 1,
                     a.d, sight);
    }
  }
}

// Joins the chunks of one key-value head, in order.
template <class T>
LB_OUTLINE void merge_unit(const Step& step, int64_t unit) {
  const DraftChain& a = step.args;
  const Sizes& s = step.sizes;
  const Work& w = step.work;
  const int64_t rows = step.beams * s.group;
  float* at = w.attention + unit * s.chunks * s.state_floats;
  // Into the own rows' state, which is never empty.
  const AttendState last = attend_state_at(at + (s.chunks - 1) * s.state_floats, rows, a.d);
  for (int64_t chunk = 0; chunk + 1 < s.chunks; ++chunk) {
    if (chunk * kAttendChunk >= a.lengths[unit / a.kv_heads]) break;
    merge_states(last, attend_state_at(at + chunk * s.state_floats, rows, a.d));
  }
  float out[kMaxHeadDim];
  for (int64_t r = 0; r < rows; ++r) {
    finish_state<T>(last, r, a.d, out);
    const int64_t row = unit / a.kv_heads * s.beams + r / s.group;
    const int64_t head = unit % a.kv_heads * s.group + r % s.group;
    pack(w.attended, row, head * a.d, out, a.d, !takes_split(a.o), takes_split(a.o));
  }
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

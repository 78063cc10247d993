// Attention of a draft's rows: over the cache, which is only read, and over the rows that the draft
// has computed itself, which lie in the workspace.
#pragma once

#include "draft_product.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

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

}  // namespace
}  // namespace leeboard::LEEBOARD_LEVEL

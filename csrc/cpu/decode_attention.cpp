// Attention of a few new tokens over a key-value cache, in chunks of keys that threads share.
#include "attend.h"
#include "level.h"

namespace leeboard::LEEBOARD_LEVEL {
namespace {

template <class T>
LB_INLINE T* at(const Heads& t, int64_t batch, int64_t head, int64_t row) {
  return static_cast<T*>(t.data) + batch * t.batch + head * t.head + row * t.row;
}

// The row of a rotary table for a new token, or null.
LB_INLINE const float* table_row(const DecodeAttention& args, const ConstRows& table, int64_t batch,
                                 int64_t token) {
  if (table.data == nullptr) return nullptr;
  const int64_t position = args.positions == nullptr ? args.lengths[batch] + token
                                                     : args.positions[batch * args.tokens + token];
  return static_cast<const float*>(table.data) + position * table.stride;
}

// Keys of the new tokens, rotated and rounded, wherever they are kept.
template <class T>
LB_INLINE T* new_keys(const DecodeAttention& args, int64_t batch, int64_t head, int64_t* stride) {
  if (args.append) {
    *stride = args.k_cache.row;
    return at<T>(args.k_cache, batch, head, args.lengths[batch]);
  }
  *stride = args.d;
  return static_cast<T*>(args.new_keys) + (batch * args.kv_heads + head) * args.tokens * args.d;
}

template <class T>
void make_keys(const DecodeAttention& args, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t token = i % args.tokens;
    const int64_t head = i / args.tokens % args.kv_heads;
    const int64_t batch = i / args.tokens / args.kv_heads;
    int64_t stride = 0;
    T* to = new_keys<T>(args, batch, head, &stride) + token * stride;
    rotate_key(at<T>(args.k, batch, head, token), args.d, table_row(args, args.cos, batch, token),
               table_row(args, args.sin, batch, token), to);
    if (args.append) {
      std::memmove(at<T>(args.v_cache, batch, head, args.lengths[batch] + token),
                   at<T>(args.v, batch, head, token), static_cast<size_t>(args.d) * sizeof(T));
    }
  }
}

LB_INLINE int64_t rows_of(const DecodeAttention& args) {
  return (args.token_end - args.token) * args.group;
}

template <class T>
void make_queries(const DecodeAttention& args, int64_t begin, int64_t end) {
  const int64_t rows = rows_of(args);
  const int64_t width = attend_width(args.d);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t head = i % args.kv_heads;
    const int64_t batch = i / args.kv_heads;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t token = args.token + row / args.group;
      pack_query<T>(at<T>(args.q, batch, head * args.group + row % args.group, token), args.d,
                    table_row(args, args.cos, batch, token),
                    table_row(args, args.sin, batch, token), args.scale,
                    args.packed + (i * rows + row) * width);
    }
  }
}

template <class T>
void attend_chunks(const DecodeAttention& args, int64_t begin, int64_t end) {
  const int64_t rows = rows_of(args);
  const int64_t chunks = args.cache_chunks + args.new_chunks;
  const int64_t floats = attend_scratch_floats(rows, args.d);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t pair = i / chunks;
    const int64_t head = pair % args.kv_heads;
    const int64_t batch = pair / args.kv_heads;
    const int64_t chunk = i % chunks;
    const int64_t length = args.lengths[batch];
    const float* q = args.packed + pair * rows * attend_width(args.d);
    Sight sight;
    sight.first = length + args.token;
    sight.group = args.group;
    if (args.window >= 0) sight.window = args.window;
    sight.sinks = args.sinks;
    float* scratch = args.states + i * floats;
    if (chunk < args.cache_chunks) {
      const int64_t first = chunk * kAttendChunk;
      const int64_t last = first + kAttendChunk < length ? first + kAttendChunk : length;
      const bool unseen = last <= first || sight.none(0, rows, first, last - first);
      // The first chunk's state is what the others are merged into.
      const AttendState state = attend_begin(scratch, rows, args.d, chunk == 0 || !unseen);
      if (unseen) continue;
      attend_range(state, q, at<T>(args.k_cache, batch, head, 0), args.k_cache.row,
                   at<T>(args.v_cache, batch, head, 0), args.v_cache.row, first, last, args.d,
                   sight);
      continue;
    }
    const int64_t first = (chunk - args.cache_chunks) * kAttendChunk;
    const int64_t most = args.mask == nullptr ? args.token_end : args.tokens;
    const int64_t last = first + kAttendChunk < most ? first + kAttendChunk : most;
    if (args.mask != nullptr) {
      sight.mask = args.mask + batch * args.mask_batch + args.token * args.mask_row;
      sight.mask_stride = args.mask_row;
    }
    sight.origin = length;
    const AttendState state = attend_begin(scratch, rows, args.d);
    int64_t stride = 0;
    const T* keys = new_keys<T>(args, batch, head, &stride);
    attend_range(state, q, keys, stride, static_cast<const T*>(at<T>(args.v, batch, head, 0)),
                 args.v.row, first, last, args.d, sight);
  }
}

template <class T>
void merge_chunks(const DecodeAttention& args, int64_t begin, int64_t end) {
  const int64_t rows = rows_of(args);
  const int64_t chunks = args.cache_chunks + args.new_chunks;
  const int64_t floats = attend_scratch_floats(rows, args.d);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t head = i % args.kv_heads;
    const int64_t batch = i / args.kv_heads;
    float* states = args.states + i * chunks * floats;
    const AttendState whole = attend_state_at(states, rows, args.d);
    for (int64_t c = 1; c < chunks; ++c) {
      merge_states(whole, attend_state_at(states + c * floats, rows, args.d));
    }
    for (int64_t row = 0; row < rows; ++row) {
      finish_state<T>(whole, row, args.d,
                      at<T>(args.out, batch, head * args.group + row % args.group,
                            args.token + row / args.group));
    }
  }
}

}  // namespace

int64_t decode_attention_floats(int64_t rows, int64_t d) { return attend_scratch_floats(rows, d); }

void decode_attention_keys(const DecodeAttention& args, int64_t begin, int64_t end) {
  dispatch_type(args.dtype, [&]<class T>(T) { make_keys<T>(args, begin, end); });
}

void decode_attention_queries(const DecodeAttention& args, int64_t begin, int64_t end) {
  dispatch_type(args.dtype, [&]<class T>(T) { make_queries<T>(args, begin, end); });
}

void decode_attention_chunks(const DecodeAttention& args, int64_t begin, int64_t end) {
  dispatch_type(args.dtype, [&]<class T>(T) { attend_chunks<T>(args, begin, end); });
}

void decode_attention_merge(const DecodeAttention& args, int64_t begin, int64_t end) {
  dispatch_type(args.dtype, [&]<class T>(T) { merge_chunks<T>(args, begin, end); });
}

}  // namespace leeboard::LEEBOARD_LEVEL

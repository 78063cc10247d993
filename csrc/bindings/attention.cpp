#include <pybind11/stl.h>

#include <algorithm>
#include <memory>

#include "bindings.h"
#include "heads_view.h"
#include "parallel.h"

namespace leeboard {
namespace {

// A tensor of `kind` and of sizes [rows, cols] whose rows are contiguous and back to back.
const void* read_dense(const TensorReader& reader, py::handle object, Kind kind, int64_t rows,
                       int64_t cols) {
  const auto t = reader.read(object);
  if (!t || t->kind != kind || t->ndim != 2 || t->shape[0] != rows || t->shape[1] != cols) {
    return nullptr;
  }
  if ((cols > 1 && t->strides[1] != 1) || (rows > 1 && t->strides[0] != cols)) return nullptr;
  return t->data;
}

struct Mask {
  const uint8_t* data;
  int64_t batch;
  int64_t row;
};

// bool [T, T] or [B, T, T] whose diagonal is true.
std::optional<Mask> read_mask(const TensorReader& reader, py::handle object, int64_t batch,
                              int64_t tokens) {
  const auto t = reader.read(object);
  if (!t || t->kind != Kind::kBool || t->ndim < 2 || t->ndim > 3) return std::nullopt;
  const int first = t->ndim - 2;
  if (t->shape[first] != tokens || t->shape[first + 1] != tokens ||
      (t->ndim == 3 && t->shape[0] != batch) || (tokens > 1 && t->strides[first + 1] != 1)) {
    return std::nullopt;
  }
  const Mask mask{reinterpret_cast<const uint8_t*>(t->data), t->ndim == 3 ? t->strides[0] : 0,
                  t->strides[first]};
  for (int64_t b = 0; b < (t->ndim == 3 ? batch : 1); ++b) {
    for (int64_t i = 0; i < tokens; ++i) {
      if (mask.data[b * mask.batch + i * mask.row + i] == 0) return std::nullopt;
    }
  }
  return mask;
}

// Query rows that share one pass over the cache: more make the states large, fewer read it oftener.
constexpr int64_t kRowsInWork = 64;

int64_t chunks_of(int64_t keys) { return (keys + kAttendChunk - 1) / kAttendChunk; }

// Floats at an address that suits whole vectors.
struct Scratch {
  explicit Scratch(int64_t count) : data(new float[static_cast<size_t>(count + 16)]) {
    const auto address = reinterpret_cast<uintptr_t>(data.get());
    next = data.get() + (64 - address % 64) % 64 / sizeof(float);
  }
  float* take(int64_t count) {
    float* taken = next;
    next += count;
    return taken;
  }
  std::unique_ptr<float[]> data;
  float* next;
};

int64_t whole_lines(int64_t floats) { return (floats + 15) / 16 * 16; }

void run(const KernelTable& kernels, DecodeAttention args, int64_t batch, int64_t longest) {
  const int64_t item = args.dtype == DType::kFloat32 ? 4 : 2;
  const int64_t pairs = batch * args.kv_heads;
  const int64_t at_once = std::min(args.tokens, std::max<int64_t>(1, kRowsInWork / args.group));
  const int64_t rows = at_once * args.group;
  const int64_t width =
      (args.d + kernels.pack_multiple - 1) / kernels.pack_multiple * kernels.pack_multiple;
  args.cache_chunks = chunks_of(longest);
  const int64_t most_chunks = args.cache_chunks + chunks_of(args.tokens);
  const int64_t key_floats =
      args.append ? 0 : whole_lines((pairs * args.tokens * args.d * item + 3) / 4);
  const int64_t query_floats = pairs * rows * width;
  const int64_t state_floats = kernels.decode_attention_floats(rows, args.d);
  Scratch scratch(key_floats + whole_lines(query_floats) + pairs * most_chunks * state_floats);
  args.new_keys = scratch.take(key_floats);
  args.packed = scratch.take(whole_lines(query_floats));
  args.states = scratch.take(0);
  parallel_for(pairs * args.tokens, grain_of(args.d * 16), [&](int64_t begin, int64_t end) {
    kernels.decode_attention_keys(args, begin, end);
  });
  for (args.token = 0; args.token < args.tokens; args.token = args.token_end) {
    args.token_end = std::min(args.tokens, args.token + at_once);
    args.new_chunks = chunks_of(args.mask == nullptr ? args.token_end : args.tokens);
    const int64_t chunks = args.cache_chunks + args.new_chunks;
    const int64_t keys = std::min(kAttendChunk, std::max<int64_t>(longest, args.token_end));
    parallel_for(pairs, grain_of(rows * args.d * 8), [&](int64_t begin, int64_t end) {
      kernels.decode_attention_queries(args, begin, end);
    });
    parallel_for(
        pairs * chunks, grain_of(keys * args.d * item * 2 * std::max<int64_t>(1, rows / 4)),
        [&](int64_t begin, int64_t end) { kernels.decode_attention_chunks(args, begin, end); });
    parallel_for(pairs, grain_of(chunks * rows * args.d * 8), [&](int64_t begin, int64_t end) {
      kernels.decode_attention_merge(args, begin, end);
    });
  }
}

}  // namespace

void bind_attention(py::module_& module, const TensorReader& reader) {
  module.def(
      "decode_attention_forward",
      [&reader](py::handle q_object, py::handle k_object, py::handle v_object,
                py::handle k_cache_object, py::handle v_cache_object, py::handle lengths_object,
                py::handle cos_object, py::handle sin_object, py::handle positions_object,
                py::handle mask_object, py::handle out_object, double scale, int64_t window,
                int64_t sinks, bool append, int level) {
        const auto q = read_heads(reader, q_object);
        const auto k = read_heads(reader, k_object);
        const auto v = read_heads(reader, v_object);
        const auto k_cache = read_heads(reader, k_cache_object);
        const auto v_cache = read_heads(reader, v_cache_object);
        const auto out = read_heads(reader, out_object);
        if (!q || !k || !v || !k_cache || !v_cache || !out) return false;
        const int64_t batch = q->batch, tokens = q->rows, d = q->d, kv_heads = k->heads;
        const int64_t capacity = k_cache->rows;
        for (const auto* t : {&*k, &*v, &*k_cache, &*v_cache, &*out}) {
          if (t->dtype != q->dtype) return false;
        }
        if (d == 0 || kv_heads == 0 || q->heads == 0 || q->heads % kv_heads != 0 ||
            !k->is(batch, kv_heads, tokens, d) || !v->is(batch, kv_heads, tokens, d) ||
            !k_cache->is(batch, kv_heads, capacity, d) ||
            !v_cache->is(batch, kv_heads, capacity, d) || !out->is(batch, q->heads, tokens, d) ||
            window == 0 || sinks < 0) {
          return false;
        }
        const auto lengths_view = reader.read(lengths_object);
        if (!lengths_view || lengths_view->kind != Kind::kInt64) return false;
        DecodeAttention args{};
        args.lengths = static_cast<const int64_t*>(as_vector(*lengths_view, batch));
        if (batch == 0 || tokens == 0) return true;
        if (args.lengths == nullptr) return false;
        int64_t longest = 0;
        for (int64_t b = 0; b < batch; ++b) {
          if (args.lengths[b] < 0 || args.lengths[b] > capacity - tokens) return false;
          longest = std::max(longest, args.lengths[b]);
        }
        if (!positions_object.is_none()) {
          args.positions = static_cast<const int64_t*>(
              read_dense(reader, positions_object, Kind::kInt64, batch, tokens));
          if (args.positions == nullptr) return false;
        }
        if (cos_object.is_none() != sin_object.is_none()) return false;
        if (!cos_object.is_none()) {
          const auto cos = read_table(reader, cos_object, d);
          const auto sin = read_table(reader, sin_object, d);
          if (!cos || !sin || cos->rows != sin->rows) return false;
          if (args.positions == nullptr && longest + tokens > cos->rows) return false;
          for (int64_t i = 0; args.positions != nullptr && i < batch * tokens; ++i) {
            if (args.positions[i] < 0 || args.positions[i] >= cos->rows) return false;
          }
          args.cos = cos->in();
          args.sin = sin->in();
        }
        if (!mask_object.is_none()) {
          const auto mask = read_mask(reader, mask_object, batch, tokens);
          if (!mask) return false;
          args.mask = mask->data;
          args.mask_batch = mask->batch;
          args.mask_row = mask->row;
        }
        args.dtype = q->dtype;
        args.kv_heads = kv_heads;
        args.group = q->heads / kv_heads;
        args.tokens = tokens;
        args.d = d;
        args.q = q->view;
        args.k = k->view;
        args.v = v->view;
        args.k_cache = k_cache->view;
        args.v_cache = v_cache->view;
        args.out = out->view;
        args.scale = static_cast<float>(scale);
        args.window = window;
        args.sinks = sinks;
        args.append = append;
        const KernelTable& kernels = kernels_of(level);
        py::gil_scoped_release nogil;
        run(kernels, args, batch, longest);
        return true;
      },
      py::arg("q"), py::arg("k"), py::arg("v"), py::arg("k_cache"), py::arg("v_cache"),
      py::arg("lengths"), py::arg("cos").none(true), py::arg("sin").none(true),
      py::arg("positions").none(true), py::arg("mask").none(true), py::arg("out"), py::arg("scale"),
      py::arg("window"), py::arg("sinks"), py::arg("append"), py::arg("level"));
}

}  // namespace leeboard

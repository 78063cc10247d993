#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "bindings.h"
#include "heads_view.h"
#include "parallel.h"
#include "weight_view.h"

namespace leeboard {
namespace {

constexpr int64_t kLine = 64;

// Zeroed where asked, on a cache line.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) : data_(new char[static_cast<size_t>(bytes + kLine)]) {}
  char* at() const {
    const auto address = reinterpret_cast<uintptr_t>(data_.get());
    return data_.get() + (kLine - address % kLine) % kLine;
  }

 private:
  std::unique_ptr<char[]> data_;
};

float to_float(const char* p, DType dtype) {
  uint16_t half;
  float value;
  if (dtype == DType::kFloat32) {
    std::memcpy(&value, p, sizeof value);
    return value;
  }
  std::memcpy(&half, p, sizeof half);
  // Only finiteness matters: a float16's exponent is widened in place.
  uint32_t bits = static_cast<uint32_t>(half) << 16;
  if (dtype == DType::kFloat16) bits = (half & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

bool all_finite(const RowsView& view, DType dtype) {
  for (int64_t r = 0; r < view.rows; ++r) {
    for (int64_t j = 0; j < view.cols; ++j) {
      if (!std::isfinite(to_float(view.data + (r * view.stride + j) * view.item, dtype))) {
        return false;
      }
    }
  }
  return true;
}

bool all_within(const int64_t* values, int64_t count, int64_t least, int64_t most) {
  return std::all_of(values, values + count,
                     [&](int64_t value) { return least <= value && value <= most; });
}

// A dense int64 or float32 or `kind` output of `count` elements.
char* read_output(const TensorReader& reader, py::handle object, Kind kind, int64_t count) {
  const auto t = reader.read(object);
  if (!t || t->kind != kind) return nullptr;
  int64_t expected = 1;
  for (int i = t->ndim - 1; i >= 0; --i) {
    if (t->shape[i] > 1 && t->strides[i] != expected) return nullptr;
    expected *= t->shape[i];
  }
  return expected == count ? t->data : nullptr;
}

}  // namespace

void bind_draft(py::module_& module, const TensorReader& reader) {
  module.def(
      "draft_chain_forward",
      [&reader](py::handle state_object, py::handle token_object, py::handle k_object,
                py::handle v_object, py::handle lengths_object,
                const std::vector<py::object>& parts, const std::vector<py::object>& matrices,
                const std::vector<std::string>& formats, py::handle d2t_object,
                const std::vector<py::object>& outputs, int64_t steps, int64_t topk, int64_t nodes,
                double eps, bool norm_output, bool norm_before_residual, int64_t window,
                int64_t sinks, int level) {
        const auto state_tensor = reader.read(state_object);
        const auto token_tensor = reader.read(token_object);
        const auto lengths_tensor = reader.read(lengths_object);
        const auto k_cache = read_heads(reader, k_object);
        const auto v_cache = read_heads(reader, v_object);
        if (!state_tensor || !token_tensor || !lengths_tensor || !k_cache || !v_cache ||
            state_tensor->ndim != 2 || token_tensor->kind != Kind::kInt64 ||
            lengths_tensor->kind != Kind::kInt64 || parts.size() != 7 || formats.size() != 8 ||
            outputs.size() != 4) {
          return false;
        }
        const auto dtype = float_dtype(state_tensor->kind);
        const auto state = as_rows(*state_tensor);
        if (!dtype || !state || state->rows == 0 || state->cols == 0) return false;
        const int64_t batch = state->rows;
        const int64_t hidden = state->cols;
        DraftChain args{};
        args.dtype = *dtype;
        args.batch = batch;
        args.steps = steps;
        args.topk = topk;
        args.nodes = nodes;
        args.hidden = hidden;
        args.state = state->in();
        args.token = static_cast<const int64_t*>(as_vector(*token_tensor, batch));
        args.lengths = static_cast<const int64_t*>(as_vector(*lengths_tensor, batch));
        if (args.token == nullptr || args.lengths == nullptr) return false;

        const auto embedding_tensor = reader.read(parts[0]);
        if (!embedding_tensor || embedding_tensor->kind != state_tensor->kind) return false;
        const auto embedding = as_rows(*embedding_tensor);
        if (!embedding || embedding->cols != hidden) return false;
        args.embedding = embedding->in();
        const void** gains[4] = {&args.input_norm, &args.hidden_norm, &args.post_norm, &args.norm};
        for (size_t i = 0; i < 4; ++i) {
          const auto gain = reader.read(parts[1 + i]);
          if (!gain || gain->kind != state_tensor->kind) return false;
          *gains[i] = as_vector(*gain, hidden);
          if (*gains[i] == nullptr) return false;
        }
        args.kv_heads = k_cache->heads;
        args.d = k_cache->d;
        if (args.d == 0 || args.d % 2 != 0 || args.d > kMaxHeadDim || args.kv_heads == 0 ||
            k_cache->dtype != *dtype || v_cache->dtype != *dtype ||
            !k_cache->is(batch, args.kv_heads, k_cache->rows, args.d) ||
            !v_cache->is(batch, args.kv_heads, k_cache->rows, args.d)) {
          return false;
        }
        args.k_cache = k_cache->view;
        args.v_cache = v_cache->view;
        const auto cos = read_table(reader, parts[5], args.d);
        const auto sin = read_table(reader, parts[6], args.d);
        if (!cos || !sin || cos->rows != sin->rows) return false;
        args.cos = cos->in();
        args.sin = sin->in();

        WeightMatrix* weights[8] = {&args.q,    &args.k,  &args.v,    &args.o,
                                    &args.gate, &args.up, &args.down, &args.head};
        const auto columns = [&](size_t i) {
          return i < 3 ? 2 * hidden : i == 3 ? args.q.rows : i == 6 ? args.gate.rows : hidden;
        };
        size_t at = 0;
        int64_t bytes = 0;
        for (size_t i = 0; i < 8; ++i) {
          const size_t tensors = formats[i] == "plain" ? 1 : 2;
          if (at + tensors > matrices.size()) return false;
          const py::handle scales =
              tensors == 1 ? py::handle(Py_None) : py::handle(matrices[at + 1]);
          const auto weight = read_weight(reader, matrices[at], scales, formats[i], columns(i));
          if (!weight) return false;
          *weights[i] = weight->matrix;
          bytes += weight->matrix.rows * weight->row_bytes();
          at += tensors;
        }
        if (at != matrices.size() || args.q.rows % (args.kv_heads * args.d) != 0) return false;
        args.heads = args.q.rows / args.d;
        args.intermediate = args.gate.rows;
        args.vocab = args.head.rows;
        const int64_t kv = args.kv_heads * args.d;
        if (args.k.rows != kv || args.v.rows != kv || args.o.rows != hidden ||
            args.up.rows != args.intermediate || args.down.rows != hidden || args.vocab == 0) {
          return false;
        }
        if (steps < 1 || window == 0 || window < -1 || sinks < 0 || topk < 1 ||
            topk > std::min(args.vocab, kTopMost) || nodes < 1) {
          return false;
        }
        if (!d2t_object.is_none()) {
          const auto tensor = reader.read(d2t_object);
          if (!tensor || tensor->kind != Kind::kInt64) return false;
          args.d2t = static_cast<const int64_t*>(as_vector(*tensor, args.vocab));
          if (args.d2t == nullptr) return false;
        } else if (args.vocab > embedding->rows) {
          return false;
        }
        args.eps = static_cast<float>(eps);
        args.norm_output = norm_output;
        args.norm_before_residual = norm_before_residual;
        args.window = window;
        args.sinks = sinks;
        const int64_t own = 1 + (steps - 1) * topk;
        args.tokens = reinterpret_cast<int64_t*>(
            read_output(reader, outputs[0], Kind::kInt64, batch * nodes));
        args.parents = reinterpret_cast<int64_t*>(
            read_output(reader, outputs[1], Kind::kInt64, batch * nodes));
        args.scores = reinterpret_cast<float*>(
            read_output(reader, outputs[2], Kind::kFloat32, batch * nodes));
        args.states = read_output(reader, outputs[3], state_tensor->kind, batch * own * hidden);
        if (args.tokens == nullptr || args.parents == nullptr || args.scores == nullptr ||
            args.states == nullptr) {
          return false;
        }
        const KernelTable& kernels = kernels_of(level);
        py::gil_scoped_release nogil;
        // What memory holds is checked before anything is computed with it.
        args.longest = *std::max_element(args.lengths, args.lengths + batch);
        if (!all_within(args.lengths, batch, 0, std::min(k_cache->rows, cos->rows - steps)) ||
            !all_within(args.token, batch, 0, embedding->rows - 1) || !all_finite(*state, *dtype)) {
          return false;
        }
        for (int64_t v = 0; args.d2t != nullptr && v < args.vocab; ++v) {
          if (args.d2t[v] < -v || args.d2t[v] >= embedding->rows - v) return false;
        }
        int64_t zeroed = 0;
        const Workspace workspace(kernels.draft_chain_bytes(args, &zeroed));
        args.workspace = workspace.at();
        std::memset(args.workspace, 0, static_cast<size_t>(zeroed));
        run_team(bytes, [&](Team& team) { kernels.draft_chain(args, team); });
        return true;
      },
      py::arg("state"), py::arg("token"), py::arg("k_cache"), py::arg("v_cache"),
      py::arg("lengths"), py::arg("parts"), py::arg("matrices"), py::arg("formats"),
      py::arg("d2t").none(true), py::arg("outputs"), py::arg("steps"), py::arg("topk"),
      py::arg("nodes"), py::arg("eps"), py::arg("norm_output"), py::arg("norm_before_residual"),
      py::arg("window"), py::arg("sinks"), py::arg("level"));
}

}  // namespace leeboard

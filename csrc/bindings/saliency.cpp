#include <memory>

#include "bindings.h"
#include "parallel.h"

namespace leeboard {
namespace {

// A tensor [B, ..., C] with contiguous channels: rows within a sample, and the step to the next.
struct SamplesView {
  TensorView tensor;
  RowsView tokens;
  int64_t batch;
};

std::optional<SamplesView> read_samples(const TensorReader& reader, py::handle object) {
  const auto tensor = reader.read(object);
  if (!tensor || tensor->ndim < 2) return std::nullopt;
  TensorView sample = *tensor;
  --sample.ndim;
  for (int d = 0; d < sample.ndim; ++d) {
    sample.shape[d] = tensor->shape[d + 1];
    sample.strides[d] = tensor->strides[d + 1];
  }
  const auto tokens = as_rows(sample);
  if (!tokens) return std::nullopt;
  return SamplesView{*tensor, *tokens, tensor->strides[0]};
}

}  // namespace

void bind_saliency(py::module_& module, const TensorReader& reader) {
  module.def(
      "unit_saliency_forward",
      [&reader](py::handle activation_object, py::handle grad_object, py::handle out_object,
                py::handle width_object, int level) {
        if (!PyLong_CheckExact(width_object.ptr())) return false;
        const int64_t width = PyLong_AsLongLong(width_object.ptr());
        if (width < 1) {
          PyErr_Clear();
          return false;
        }
        const auto activation = read_samples(reader, activation_object);
        const auto grad = read_samples(reader, grad_object);
        if (!activation || !grad || activation->tensor.kind != grad->tensor.kind ||
            !same_shape(activation->tensor, grad->tensor)) {
          return false;
        }
        const auto dtype = float_dtype(activation->tensor.kind);
        const int64_t samples = activation->tensor.shape[0];
        const int64_t cols = activation->tokens.cols;
        const auto out_tensor = reader.read(out_object);
        if (!dtype || cols == 0 || cols % width != 0 || !out_tensor ||
            out_tensor->kind != Kind::kFloat32 || out_tensor->ndim != 2 ||
            out_tensor->shape[0] != samples || out_tensor->shape[1] != cols / width) {
          return false;
        }
        const auto out = as_rows(*out_tensor);
        if (!out || !rows_distinct(*out)) return false;
        if (samples == 0) return true;
        UnitSaliency args;
        args.dtype = *dtype;
        args.tokens = activation->tokens.rows;
        args.cols = cols;
        args.width = width;
        args.activation = activation->tokens.in();
        args.activation_batch = activation->batch;
        args.grad = grad->tokens.in();
        args.grad_batch = grad->batch;
        // Of no tokens one empty chunk, so that there is a sum.
        args.chunks = args.tokens > 0 ? (args.tokens + kSaliencyTokens - 1) / kSaliencyTokens : 1;
        const int64_t chunks = samples * args.chunks;
        const std::unique_ptr<float[]> partial(new float[static_cast<size_t>(chunks * cols)]);
        args.partial = partial.get();
        // The result is written when everything has been read: it may lie in an input.
        args.out = out->out();
        const KernelTable& kernels = kernels_of(level);
        const int64_t units = samples * (cols / width);
        const int64_t most = args.tokens < kSaliencyTokens ? args.tokens : kSaliencyTokens;
        const int64_t bytes = 2 * most * cols * activation->tokens.item;
        if (chunks * bytes <= kParallelBytes) {
          // Giving the lock away costs as much as such a call.
          kernels.unit_saliency_chunks(args, 0, chunks);
          kernels.unit_saliency_units(args, 0, units);
        } else {
          py::gil_scoped_release nogil;
          parallel_for(chunks, grain_of(bytes), [&](int64_t begin, int64_t end) {
            kernels.unit_saliency_chunks(args, begin, end);
          });
          parallel_for(units, grain_of(4 * width * args.chunks), [&](int64_t begin, int64_t end) {
            kernels.unit_saliency_units(args, begin, end);
          });
        }
        return true;
      },
      py::arg("activation"), py::arg("grad"), py::arg("out"), py::arg("width"), py::arg("level"));
}

}  // namespace leeboard

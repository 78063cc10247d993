#include <pybind11/stl.h>

#include <memory>
#include <optional>

#include "bindings.h"
#include "parallel.h"

namespace leeboard {
namespace {

std::optional<RowsView> read_rows(const TensorReader& reader, py::handle object, Kind kind) {
  const auto tensor = reader.read(object);
  if (!tensor || tensor->kind != kind) return std::nullopt;
  return as_rows(*tensor);
}

// The whole of a fresh contiguous output of `size` elements.
int64_t* read_output(const TensorReader& reader, py::handle object, int64_t size) {
  const auto rows = read_rows(reader, object, Kind::kInt64);
  const bool fits = rows && rows->rows * rows->cols == size && rows->stride == rows->cols;
  return fits ? reinterpret_cast<int64_t*>(rows->data) : nullptr;
}

const int64_t* integers(const RowsView& rows) {
  return reinterpret_cast<const int64_t*>(rows.data);
}

// Draft tokens [B, N] and parents, which are None, [N] or [B, N].
bool read_tree(const TensorReader& reader, py::handle tokens_object, py::handle parents_object,
               int64_t& sequences, DraftTree& tree) {
  const auto tokens = read_rows(reader, tokens_object, Kind::kInt64);
  if (!tokens) return false;
  sequences = tokens->rows;
  tree = {tokens->cols, integers(*tokens), tokens->stride, nullptr, 0};
  if (parents_object.is_none()) return true;
  const auto parents = read_rows(reader, parents_object, Kind::kInt64);
  if (!parents || parents->cols != tree.nodes ||
      (parents->rows != sequences && parents->rows != 1)) {
    return false;
  }
  tree.parents = integers(*parents);
  tree.parents_stride = parents->rows == 1 ? 0 : parents->stride;
  return true;
}

bool read_outputs(const TensorReader& reader, py::handle accepted, py::handle next_token,
                  py::handle path, int64_t sequences, int64_t nodes, VerifyOutputs& out) {
  out.accepted = read_output(reader, accepted, sequences);
  out.next_token = read_output(reader, next_token, sequences);
  out.path = path.is_none() ? nullptr : read_output(reader, path, sequences * nodes);
  return out.accepted != nullptr && out.next_token != nullptr &&
         (path.is_none() || nodes == 0 || out.path != nullptr);
}

struct Distributions {
  DType dtype;
  RowsView view;
};

std::optional<Distributions> read_distributions(const TensorReader& reader, py::handle object) {
  const auto tensor = reader.read(object);
  if (!tensor) return std::nullopt;
  const auto dtype = float_dtype(tensor->kind);
  const auto rows = as_rows(*tensor);
  if (!dtype || !rows || rows->cols == 0) return std::nullopt;
  return Distributions{*dtype, *rows};
}

}  // namespace

void bind_verify(py::module_& module, const TensorReader& reader) {
  module.def(
      "verify_greedy_forward",
      [&reader](py::handle draft_tokens, py::handle target_tokens, py::handle parents,
                py::handle accepted, py::handle next_token, py::handle path, int level) {
        VerifyGreedy args;
        int64_t sequences = 0;
        if (!read_tree(reader, draft_tokens, parents, sequences, args.tree)) return false;
        const auto target = read_rows(reader, target_tokens, Kind::kInt64);
        if (!target || target->rows != sequences || target->cols != args.tree.nodes + 1 ||
            !read_outputs(reader, accepted, next_token, path, sequences, args.tree.nodes,
                          args.out)) {
          return false;
        }
        args.target = integers(*target);
        args.target_stride = target->stride;
        // Shorter than giving the interpreter away, unless there are thousands of sequences.
        const KernelTable& kernels = kernels_of(level);
        const int64_t bytes = 24 * args.tree.nodes + 24;
        if (sequences * bytes <= kParallelBytes) {
          kernels.verify_greedy(args, 0, sequences);
        } else {
          py::gil_scoped_release nogil;
          parallel_for(sequences, grain_of(bytes), [&](int64_t begin, int64_t end) {
            kernels.verify_greedy(args, begin, end);
          });
        }
        return true;
      },
      py::arg("draft_tokens"), py::arg("target_tokens"), py::arg("parents").none(true),
      py::arg("accepted"), py::arg("next_token"), py::arg("path").none(true), py::arg("level"));

  module.def(
      "verify_sample_forward",
      [&reader](py::handle draft_tokens, py::handle target_probs, py::handle draft_probs,
                py::handle parents, py::handle uniforms_object, py::handle accepted,
                py::handle next_token, py::handle path, int level) {
        VerifySample args;
        int64_t sequences = 0;
        if (!read_tree(reader, draft_tokens, parents, sequences, args.tree)) return false;
        const int64_t nodes = args.tree.nodes;
        const auto target = read_distributions(reader, target_probs);
        const auto uniforms = read_rows(reader, uniforms_object, Kind::kFloat64);
        if (!target || target->view.rows != sequences * (nodes + 1) || !uniforms ||
            uniforms->rows != sequences || uniforms->cols != nodes + 1 ||
            !read_outputs(reader, accepted, next_token, path, sequences, nodes, args.out)) {
          return false;
        }
        args.dtype = target->dtype;
        args.vocab = target->view.cols;
        args.target = target->view.in();
        args.draft = {nullptr, 0};
        args.uniforms = reinterpret_cast<const double*>(uniforms->data);
        args.uniforms_stride = uniforms->stride;
        if (!draft_probs.is_none() && nodes > 0) {
          const auto draft = read_distributions(reader, draft_probs);
          if (!draft || draft->dtype != args.dtype || draft->view.cols != args.vocab ||
              draft->view.rows != sequences * nodes || args.tree.parents != nullptr) {
            return false;
          }
          args.draft = draft->view.in();
        }
        const KernelTable& kernels = kernels_of(level);
        py::gil_scoped_release nogil;
        // Most of a sequence's rows are rarely visited: two count.
        parallel_for(sequences, grain_of(2 * args.vocab * target->view.item),
                     [&](int64_t begin, int64_t end) { kernels.verify_sample(args, begin, end); });
        return true;
      },
      py::arg("draft_tokens"), py::arg("target_probs"), py::arg("draft_probs").none(true),
      py::arg("parents").none(true), py::arg("uniforms"), py::arg("accepted"),
      py::arg("next_token"), py::arg("path").none(true), py::arg("level"));

  module.def(
      "first_bad_distribution",
      [&reader](py::handle probs, double tolerance, int level) -> std::optional<int64_t> {
        const auto rows = read_distributions(reader, probs);
        if (!rows) return std::nullopt;
        const int64_t count = rows->view.rows;
        const std::unique_ptr<bool[]> bad(new bool[static_cast<size_t>(count)]());
        const CheckDistributions args{rows->dtype, rows->view.cols, rows->view.in(), tolerance,
                                      bad.get()};
        const KernelTable& kernels = kernels_of(level);
        py::gil_scoped_release nogil;
        parallel_for(
            count, grain_of(rows->view.cols * rows->view.item),
            [&](int64_t begin, int64_t end) { kernels.check_distributions(args, begin, end); });
        for (int64_t r = 0; r < count; ++r) {
          if (bad[static_cast<size_t>(r)]) return r;
        }
        return -1;
      },
      py::arg("probs"), py::arg("tolerance"), py::arg("level"));
}

}  // namespace leeboard

#include <memory>
#include <string>

#include "bindings.h"
#include "parallel.h"

namespace leeboard {
namespace {

std::optional<RowsView> read_floats(const TensorReader& reader, py::handle object) {
  const auto tensor = reader.read(object);
  if (!tensor || tensor->kind != Kind::kFloat32 || tensor->ndim != 2) return std::nullopt;
  return as_rows(*tensor);
}

// A contiguous vector of `size` elements of a kind; null where it is another.
template <class T>
T* read_vector(const TensorReader& reader, py::handle object, Kind kind, int64_t size) {
  const auto tensor = reader.read(object);
  if (!tensor || tensor->kind != kind) return nullptr;
  return static_cast<T*>(const_cast<void*>(as_vector(*tensor, size)));
}

std::optional<TttLossKind> loss_kind(const std::string& name) {
  if (name == "kl") return TttLossKind::kKl;
  if (name == "lk_alpha") return TttLossKind::kAlpha;
  if (name == "lk_lambda") return TttLossKind::kLambda;
  return std::nullopt;
}

// Runs `body` on ranges of `rows`, without the interpreter's lock where that pays.
template <class Body>
void run_rows(int64_t rows, int64_t cols, Body body) {
  // A row is read several times, with exponentials: a quarter of the usual bytes are worth a range.
  const int64_t bytes = 16 * cols;
  if (rows * bytes <= kParallelBytes) {
    body(int64_t{0}, rows);
    return;
  }
  py::gil_scoped_release nogil;
  parallel_for(rows, grain_of(bytes), body);
}

}  // namespace

void bind_ttt_loss(py::module_& module, const TensorReader& reader) {
  module.def(
      "ttt_loss_teacher",
      [&reader](py::handle logits_object, py::handle logsumexp, py::handle total,
                py::handle coverage, py::handle best, double softcap, int level) {
        const auto logits = read_floats(reader, logits_object);
        if (!logits || logits->cols == 0 || !rows_distinct(*logits)) return false;
        const int64_t rows = logits->rows;
        if (rows == 0) return true;
        TttLossTeacher args;
        args.cols = logits->cols;
        args.logits = logits->out();
        args.softcap = static_cast<float>(softcap);
        args.logsumexp = nullptr;
        if (!logsumexp.is_none()) {
          args.logsumexp = read_vector<const float>(reader, logsumexp, Kind::kFloat32, rows);
          if (args.logsumexp == nullptr) return false;
        }
        args.total = read_vector<float>(reader, total, Kind::kFloat32, rows);
        args.coverage = read_vector<float>(reader, coverage, Kind::kFloat32, rows);
        args.best = read_vector<int64_t>(reader, best, Kind::kInt64, rows);
        if (args.total == nullptr || args.coverage == nullptr || args.best == nullptr) return false;
        const KernelTable& kernels = kernels_of(level);
        run_rows(rows, args.cols,
                 [&](int64_t begin, int64_t end) { kernels.ttt_loss_teacher(args, begin, end); });
        return true;
      },
      py::arg("logits"), py::arg("logsumexp").none(true), py::arg("total"), py::arg("coverage"),
      py::arg("best"), py::arg("softcap"), py::arg("level"));

  module.def(
      "ttt_loss_rows",
      [&reader](py::handle logits_object, py::handle teacher_object, py::handle place,
                py::handle total, py::handle coverage, py::handle best, py::handle weight,
                py::handle row_loss, py::handle hit, py::handle overlap, const std::string& loss,
                double eta, bool gradient, int level) {
        const auto kind = loss_kind(loss);
        const auto logits = read_floats(reader, logits_object);
        const auto teacher = read_floats(reader, teacher_object);
        if (!kind || !logits || !teacher || logits->cols == 0 || logits->cols != teacher->cols ||
            !rows_distinct(*logits)) {
          return false;
        }
        const int64_t rows = logits->rows;
        if (rows == 0) return true;
        TttLossRows args;
        args.cols = logits->cols;
        args.kind = *kind;
        args.eta = static_cast<float>(eta);
        args.gradient = gradient;
        args.logits = logits->out();
        args.teacher = teacher->in();
        args.place = read_vector<const int64_t>(reader, place, Kind::kInt64, rows);
        args.total = read_vector<const float>(reader, total, Kind::kFloat32, teacher->rows);
        args.coverage = read_vector<const float>(reader, coverage, Kind::kFloat32, teacher->rows);
        args.best = read_vector<const int64_t>(reader, best, Kind::kInt64, teacher->rows);
        args.weight = read_vector<const float>(reader, weight, Kind::kFloat32, rows);
        args.row_loss = read_vector<float>(reader, row_loss, Kind::kFloat32, rows);
        args.hit = read_vector<bool>(reader, hit, Kind::kBool, rows);
        args.overlap = read_vector<float>(reader, overlap, Kind::kFloat32, rows);
        if (args.place == nullptr || args.total == nullptr || args.coverage == nullptr ||
            args.best == nullptr || args.weight == nullptr || args.row_loss == nullptr ||
            args.hit == nullptr || args.overlap == nullptr) {
          return false;
        }
        for (int64_t r = 0; r < rows; ++r) {
          if (args.place[r] < 0 || args.place[r] >= teacher->rows) return false;
        }
        const KernelTable& kernels = kernels_of(level);
        run_rows(rows, args.cols, [&](int64_t begin, int64_t end) {
          TttLossRows range = args;
          const std::unique_ptr<float[]> exponentials(new float[static_cast<size_t>(args.cols)]);
          range.exponentials = exponentials.get();
          kernels.ttt_loss_rows(range, begin, end);
        });
        return true;
      },
      py::arg("logits"), py::arg("teacher"), py::arg("place"), py::arg("total"),
      py::arg("coverage"), py::arg("best"), py::arg("weight"), py::arg("row_loss"), py::arg("hit"),
      py::arg("overlap"), py::arg("loss"), py::arg("eta"), py::arg("gradient"), py::arg("level"));
}

}  // namespace leeboard

// Linear layers and feed-forward blocks over a list of panels of their weights.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "bindings.h"
#include "parallel.h"
#include "weight_view.h"

namespace leeboard {
namespace {

constexpr int64_t kLine = 64;

// What a PanelList points to.
struct Listed {
  int64_t width = 0;  // columns of the activations: panels, those that are none included
  std::vector<int64_t> channels;
  std::vector<PanelRun> runs;
  std::vector<int64_t> block_runs;
  std::vector<PanelRun> columns;

  void add(int64_t weight, int64_t column, int64_t count) {
    const auto place = static_cast<int64_t>(channels.size());
    for (int64_t i = 0; i < count; ++i) channels.push_back(weight + i);
    join(runs, weight, place, count);
    join(columns, column, place, count);
  }

  PanelList list() {
    cut_runs();
    return {static_cast<int64_t>(channels.size()),
            channels.data(),
            runs.data(),
            block_runs.data(),
            columns.data(),
            static_cast<int64_t>(columns.size())};
  }

 private:
  static void join(std::vector<PanelRun>& runs, int64_t weight, int64_t place, int64_t count) {
    if (!runs.empty() && runs.back().weight + runs.back().count == weight &&
        runs.back().place + runs.back().count == place) {
      runs.back().count += count;
    } else {
      runs.push_back({weight, place, count});
    }
  }

  void cut_runs() {
    std::vector<PanelRun> cut;
    cut.reserve(runs.size() + channels.size() / kPanelBlock + 1);
    block_runs.assign(1, 0);
    for (PanelRun run : runs) {
      while (run.count > 0) {
        const int64_t room = kPanelBlock - run.place % kPanelBlock;
        const int64_t count = std::min(run.count, room);
        cut.push_back({run.weight, run.place, count});
        run = {run.weight + count, run.place + count, run.count - count};
        if (count == room) block_runs.push_back(static_cast<int64_t>(cut.size()));
      }
    }
    if (channels.size() % kPanelBlock != 0) block_runs.push_back(static_cast<int64_t>(cut.size()));
    runs.swap(cut);
  }
};

// Empty for a list that is not read as it is. Raises for panels that the weight does not have, and
// (`strict`) for one that is there twice.
std::optional<Listed> read_panels(const TensorReader& reader, py::handle object, int64_t size,
                                  int64_t panel, bool strict) {
  Listed listed;
  const int64_t count = (size + panel - 1) / panel;
  if (object.is_none()) {
    listed.width = count * panel;
    listed.channels.reserve(static_cast<size_t>(size));
    listed.add(0, 0, size);
    return listed;
  }
  const auto view = reader.read(object);
  if (!view || view->ndim != 1 || (view->kind != Kind::kInt64 && view->kind != Kind::kInt32)) {
    return std::nullopt;
  }
  const int64_t length = view->shape[0];
  listed.width = length * panel;
  listed.channels.reserve(static_cast<size_t>(std::min(length, count) * panel));
  std::vector<bool> seen(strict ? static_cast<size_t>(count) : 0);
  for (int64_t i = 0; i < length; ++i) {
    const int64_t at = i * view->strides[0];
    const int64_t p = view->kind == Kind::kInt64 ? reinterpret_cast<const int64_t*>(view->data)[at]
                                                 : reinterpret_cast<const int32_t*>(view->data)[at];
    if (p == -1) continue;
    if (p < -1 || p >= count) {
      throw py::value_error("panels: " + std::to_string(p) + " was given at [" + std::to_string(i) +
                            "]; expected -1 to " + std::to_string(count - 1));
    }
    if (strict) {
      if (seen[static_cast<size_t>(p)]) {
        throw py::value_error("panels: " + std::to_string(p) + " was given a second time at [" +
                              std::to_string(i) + "]; expected each panel once");
      }
      seen[static_cast<size_t>(p)] = true;
    }
    listed.add(p * panel, i * panel, std::min(panel, size - p * panel));
  }
  return listed;
}

// A vector [size] of a storage type; null for None, empty where it is not read as it is.
std::optional<const void*> read_vector(const TensorReader& reader, py::handle object, DType dtype,
                                       int64_t size) {
  if (object.is_none()) return nullptr;
  const auto tensor = reader.read(object);
  if (!tensor || float_dtype(tensor->kind) != dtype) return std::nullopt;
  const void* data = as_vector(*tensor, size);
  return data == nullptr ? std::nullopt : std::optional<const void*>(data);
}

// [rows, cols], or null data for None.
std::optional<ConstRows> read_optional(const TensorReader& reader, py::handle object, DType dtype,
                                       int64_t rows, int64_t cols, const RowsView& out,
                                       bool in_place) {
  if (object.is_none()) return ConstRows{nullptr, 0};
  const auto view = read_matrix(reader, object, dtype);
  if (!view || view->rows != rows || view->cols != cols) return std::nullopt;
  if (in_place ? !may_write(out, *view) : !apart(out, *view)) return std::nullopt;
  return view->in();
}

// Floats on a cache line, not initialised.
class Floats {
 public:
  explicit Floats(int64_t count)
      : memory_(new char[static_cast<size_t>(count * 4 + kLine)]),
        data_(reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory_.get()) + kLine - 1) /
                                       kLine * kLine)) {}
  float* get() const { return data_; }

 private:
  std::unique_ptr<char[]> memory_;
  float* data_;
};

}  // namespace

void bind_panel(py::module_& module, const TensorReader& reader) {
  module.def(
      "panel_linear_forward",
      [&reader](py::handle x_object, py::handle weight_object, py::handle panels, py::handle bias,
                py::handle residual, py::handle out_object, bool over_inputs, int64_t panel,
                bool strict, int level) {
        const auto x = read_activations(reader, x_object);
        if (!x || panel < 1) return false;
        const DType dtype = x->dtype;
        const auto weight = read_matrix(reader, weight_object, dtype);
        const auto out = read_matrix(reader, out_object, dtype);
        if (!weight || !out || !rows_distinct(*out) || out->rows != x->view.rows ||
            !apart(*out, x->view) || !apart(*out, *weight)) {
          return false;
        }
        const auto offset = read_vector(reader, bias, dtype, weight->rows);
        const auto add = read_optional(reader, residual, dtype, out->rows, out->cols, *out, true);
        if (!offset || !add) return false;
        auto listed =
            read_panels(reader, panels, over_inputs ? weight->cols : weight->rows, panel, strict);
        if (!listed) return false;
        const bool fits = over_inputs ? x->view.cols == listed->width && out->cols == weight->rows
                                      : x->view.cols == weight->cols && out->cols == listed->width;
        if (!fits) return false;
        const KernelTable& kernels = kernels_of(level);
        py::gil_scoped_release nogil;
        alignas(kLine) char counters[kLine] = {};
        const PanelLinear args{dtype,        over_inputs ? PanelOver::kInputs : PanelOver::kOutputs,
                               out->rows,    weight->cols,
                               weight->rows, listed->list(),
                               x->view.in(), weight->in(),
                               *offset,      *add,
                               out->out(),   out->cols,
                               counters};
        const int64_t other = over_inputs ? weight->rows : weight->cols;
        const int64_t bytes = args.list.active * other * weight->item * ((args.rows + 7) / 8);
        run_team(bytes, [&](Team& team) {
          const Floats memory(kernels.panel_linear_floats(args, team.size));
          kernels.panel_linear(args, team, memory.get());
        });
        return true;
      },
      py::arg("x"), py::arg("weight"), py::arg("panels").none(true), py::arg("bias").none(true),
      py::arg("residual").none(true), py::arg("out"), py::arg("over_inputs"), py::arg("panel"),
      py::arg("strict"), py::arg("level"));

  module.def(
      "panel_ffn_forward",
      [&reader](py::handle x_object, py::handle up_object, py::handle down_object, py::handle gate,
                py::handle up_bias, py::handle gate_bias, py::handle panels, py::handle bias,
                py::handle gates, py::handle residual, py::handle norm_weight, py::handle norm_bias,
                py::handle out_object, int64_t rows_per_sample, int activation, int norm,
                double eps, int64_t panel, bool strict, int level) {
        const auto x = read_activations(reader, x_object);
        if (!x || panel < 1 || activation < 0 || norm < 0 ||
            activation > static_cast<int>(Activation::kIdentity) ||
            norm > static_cast<int>(PanelNorm::kRmsNorm)) {
          return false;
        }
        const DType dtype = x->dtype;
        const auto up = read_matrix(reader, up_object, dtype);
        const auto down = read_matrix(reader, down_object, dtype);
        const auto out = read_matrix(reader, out_object, dtype);
        if (!up || !down || !out || up->cols != x->view.cols || down->cols != up->rows ||
            out->cols != down->rows || out->rows != x->view.rows || !rows_distinct(*out) ||
            !apart(*out, x->view) || !apart(*out, *up) || !apart(*out, *down)) {
          return false;
        }
        const int64_t hidden = up->rows;
        const int64_t rows = out->rows;
        const auto gate_rows = read_optional(reader, gate, dtype, hidden, up->cols, *out, false);
        const auto add = read_optional(reader, residual, dtype, rows, out->cols, *out, true);
        const auto up_offset = read_vector(reader, up_bias, dtype, hidden);
        const auto gate_offset = read_vector(reader, gate_bias, dtype, hidden);
        const auto offset = read_vector(reader, bias, dtype, out->cols);
        const auto scale = read_vector(reader, norm_weight, dtype, up->cols);
        const auto shift = read_vector(reader, norm_bias, dtype, up->cols);
        if (!gate_rows || !add || !up_offset || !gate_offset || !offset || !scale || !shift) {
          return false;
        }
        ConstRows factors{nullptr, 0};
        int64_t samples = 0;
        if (!gates.is_none()) {
          const auto view = read_matrix(reader, gates, dtype);
          if (!view || view->cols != hidden || !apart(*out, *view)) return false;
          samples = view->rows;
          if (samples != 1 && (rows_per_sample < 1 || samples * rows_per_sample != rows)) {
            return false;
          }
          factors = view->in();
        }
        auto listed = read_panels(reader, panels, hidden, panel, strict);
        if (!listed) return false;
        const KernelTable& kernels = kernels_of(level);
        py::gil_scoped_release nogil;
        alignas(kLine) char counters[2 * kLine] = {};
        PanelFfn args{dtype,
                      static_cast<Activation>(activation),
                      static_cast<PanelNorm>(norm),
                      static_cast<float>(eps),
                      rows,
                      up->cols,
                      out->cols,
                      listed->list(),
                      x->view.in(),
                      *scale,
                      *shift,
                      up->in(),
                      *gate_rows,
                      *up_offset,
                      *gate_offset,
                      down->in(),
                      *offset,
                      factors,
                      samples,
                      rows_per_sample,
                      *add,
                      out->out(),
                      nullptr,
                      counters};
        const Floats between(kernels.panel_ffn_hidden_floats(args));
        args.hidden = between.get();
        const int64_t width = up->cols * (gate.is_none() ? 1 : 2) + out->cols;
        const int64_t bytes = args.list.active * width * up->item * ((rows + 7) / 8);
        run_team(bytes, [&](Team& team) {
          const Floats memory(kernels.panel_ffn_floats(args, team.size));
          kernels.panel_ffn(args, team, memory.get());
        });
        return true;
      },
      py::arg("x"), py::arg("up"), py::arg("down"), py::arg("gate").none(true),
      py::arg("up_bias").none(true), py::arg("gate_bias").none(true), py::arg("panels").none(true),
      py::arg("bias").none(true), py::arg("gates").none(true), py::arg("residual").none(true),
      py::arg("norm_weight").none(true), py::arg("norm_bias").none(true), py::arg("out"),
      py::arg("rows_per_sample"), py::arg("activation"), py::arg("norm"), py::arg("eps"),
      py::arg("panel"), py::arg("strict"), py::arg("level"));
}

}  // namespace leeboard

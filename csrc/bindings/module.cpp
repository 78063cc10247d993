// leeboard._C: the compiled kernels. Entry points return False, with nothing touched, for arguments
// that they do not take (another dtype, device or layout); Python then copies, falls back to the
// reference, or explains.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings.h"
#include "parallel.h"

namespace py = pybind11;

namespace leeboard {

const KernelTable& kernels_of(int level) {
  static const Isa native = isa_native();
  if (level < 0) return *kernel_table(native);
  const KernelTable* table =
      level <= static_cast<int>(native) ? kernel_table(static_cast<Isa>(level)) : nullptr;
  if (table == nullptr) {
    throw py::value_error("level: " + std::to_string(level) +
                          " is not among the instruction-set levels of this machine");
  }
  return *table;
}

}  // namespace leeboard

PYBIND11_MODULE(_C, module, py::mod_gil_not_used()) {
  module.doc() = "Compiled CPU kernels of leeboard (internal; use leeboard.ops).";
  // Kept for the life of the process, like the module itself.
  static const leeboard::TensorReader reader(py::module_::import("torch"));
  leeboard::bind_attention(module, reader);
  leeboard::bind_glue(module, reader);
  leeboard::bind_norm(module, reader);
  leeboard::bind_draft(module, reader);
  leeboard::bind_head(module, reader);
  leeboard::bind_linear(module, reader);
  leeboard::bind_panel(module, reader);
  leeboard::bind_saliency(module, reader);
  leeboard::bind_sparse(module, reader);
  leeboard::bind_sparse_backward(module, reader);
  leeboard::bind_ttt_attention(module, reader);
  leeboard::bind_ttt_loss(module, reader);
  leeboard::bind_verify(module, reader);
  leeboard::bind_relay(module);
  leeboard::bind_sim(module);
  leeboard::bind_sim_collective(module);
  leeboard::bind_sim_live(module);
  leeboard::bind_sim_network(module);
  leeboard::bind_sim_queue(module);
  module.def(
      "isa_levels",
      [] {
        std::vector<std::pair<int, std::string>> levels;
        const int native = static_cast<int>(leeboard::isa_native());
        for (int level = 0; level <= native; ++level) {
          const auto isa = static_cast<leeboard::Isa>(level);
          if (leeboard::kernel_table(isa) != nullptr) {
            levels.emplace_back(level, leeboard::isa_name(isa));
          }
        }
        return levels;
      },
      "Levels that were built and that this processor runs, lowest first: [(level, name)].");
  module.attr("STREAM_BYTES") = leeboard::kStreamBytes;
  module.def("has_thread_pool", &leeboard::has_thread_pool,
             "Whether torch's thread pool was found; else kernels run on the calling thread.");
  module.def(
      "has_exchange_table", [] { return reader.has_exchange_table(); },
      "Whether tensors are read through torch's DLPack exchange table.");
}

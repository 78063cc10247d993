// What the binding files share.
#pragma once

#include "isa.h"
#include "tensor_view.h"

namespace leeboard {

// The kernels of a level; a negative level means the best one of this processor.
const KernelTable& kernels_of(int level);

void bind_attention(py::module_& module, const TensorReader& reader);
void bind_glue(py::module_& module, const TensorReader& reader);
void bind_head(py::module_& module, const TensorReader& reader);
void bind_norm(py::module_& module, const TensorReader& reader);
void bind_draft(py::module_& module, const TensorReader& reader);
void bind_linear(py::module_& module, const TensorReader& reader);
void bind_panel(py::module_& module, const TensorReader& reader);
void bind_relay(py::module_& module);
void bind_saliency(py::module_& module, const TensorReader& reader);
void bind_sim(py::module_& module);
void bind_sim_collective(py::module_& module);
void bind_sim_live(py::module_& module);
void bind_sim_network(py::module_& module);
void bind_sim_queue(py::module_& module);
void bind_sparse(py::module_& module, const TensorReader& reader);
void bind_sparse_backward(py::module_& module, const TensorReader& reader);
void bind_ttt_attention(py::module_& module, const TensorReader& reader);
void bind_ttt_loss(py::module_& module, const TensorReader& reader);
void bind_verify(py::module_& module, const TensorReader& reader);

}  // namespace leeboard

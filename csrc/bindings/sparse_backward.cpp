#include "bindings.h"
#include "sparse_view.h"

namespace leeboard {

void bind_sparse_backward(py::module_& module, const TensorReader&) {
  module.def("sparse_gqa_backward", [](const py::args&) { return false; });
}

}  // namespace leeboard

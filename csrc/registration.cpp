// The schema of every native operator: the table of contents of the compiled code.
// Implementations register themselves beside their code, for the devices that they serve.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fastssl, m) {
  // The instruction set that the CPU kernels use; tests set a lower one to reach every compiled copy.
  m.def("cpu_capability() -> str");
  m.def("set_cpu_capability(str name) -> ()");
}

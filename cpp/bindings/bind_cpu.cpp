#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "lemur/cpu.hpp"

namespace nb = nanobind;

void bind_cpu(nb::module_& m) {
  m.def("supported_isas", &lemur::supported_isas, "Instruction sets this machine can run, fastest first.");
  m.def("active_isa", [] { return std::string(lemur::active_kernels().isa); }, "The instruction set in use.");
  m.def("force_isa", &lemur::force_isa, nb::arg("isa"), "Use this instruction set from now on.");
}

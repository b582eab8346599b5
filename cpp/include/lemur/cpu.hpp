// Which instruction set the kernels use: found once at run time, from CPUID and the operating system's state.
#pragma once

#include <string>
#include <vector>

#include "lemur/kernels/table.hpp"

namespace lemur {

// The instruction sets this machine can run, fastest first; "scalar" is always the last.
std::vector<std::string> supported_isas();

// The kernels in use. The environment variable LEMUR_ANN_ISA forces one of supported_isas();
// throws std::invalid_argument where it names an unknown or unsupported one.
const KernelTable& active_kernels();

// Use `isa` from now on, for tests and comparisons. Throws std::invalid_argument like active_kernels().
void force_isa(const std::string& isa);

}  // namespace lemur

// What one instruction set provides. Files of cpp/src/kernels include only <cstddef>, <cstdint>, intrinsics and this
// folder: an inline function of the standard library compiled there could be kept by the linker for every caller.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lemur {

// Query tokens are packed in panels of 16: panel p holds, for each k < dim, the k-th component of tokens 16p .. 16p
// + 15.
constexpr std::int64_t kPanelTokens = 16;

struct KernelTable {
  const char* isa;

  // best[t] = max(best[t], max over j of <query token t, document token j>) for the num_panels * 16 packed query
  // tokens. `tokens` is (num_tokens, dim), row-major. Each inner product is summed in the order of k with one rounding
  // a step, so avx2, avx512 and neon agree bit for bit, whatever the blocking; scalar rounds twice where it has no FMA.
  void (*update_maxima)(const float* panels, std::int64_t num_panels, const float* tokens, std::int64_t num_tokens,
                        std::int64_t dim, float* best);

  // out[j * num_panels * 16 + t] = <packed vector t, row j> over `depth` components; rows lie `stride` floats apart.
  // Summed like update_maxima, so that a product does not depend on what stands beside it.
  void (*products)(const float* panels, std::int64_t num_panels, const float* rows, std::int64_t num_rows,
                   std::int64_t stride, std::int64_t depth, float* out);

  // float32 values of `size` IEEE half-precision numbers.
  void (*widen)(const std::uint16_t* half, std::int64_t size, float* out);
};

extern const KernelTable kScalarKernels;
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512Kernels;
extern const KernelTable kNeonKernels;

}  // namespace lemur

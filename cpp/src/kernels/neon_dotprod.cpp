// 64-bit Arm with the dot-product instructions (Armv8.2; Apple silicon, Graviton 2 and later).
#if defined(__aarch64__) || defined(_M_ARM64)

#include "lemur/kernels/neon.hpp"

namespace lemur {
namespace {

struct DotprodInt8 : NeonCodes {
  static int32x4_t dot(int32x4_t sum, int8x16_t q, int8x16_t d) { return vdotq_s32(sum, q, d); }
};

}  // namespace

const KernelTable kNeonDotprodKernels = {"neon_dotprod",
                                         update_maxima<Neon>,
                                         products<Neon>,
                                         int8_maxima<DotprodInt8>,
                                         int8_document<DotprodInt8>,
                                         int8_dots<DotprodInt8>,
                                         activate,
                                         normalise,
                                         widen,
                                         as_bytes,
                                         update_nearest,
                                         byte_maxima<Bytes16>,
                                         match_sums,
                                         small_rows<Codes16>};

}  // namespace lemur

#endif

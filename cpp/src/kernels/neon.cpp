// 64-bit Arm: NEON with FMA and half-precision conversion is part of the baseline.
#if defined(__aarch64__) || defined(_M_ARM64)

#include "lemur/kernels/neon.hpp"

namespace lemur {
namespace {

struct PlainInt8 : NeonCodes {
  // Products in 16 bits, pairs of them in 32, and pairs of those: one sum for each group of four.
  static int32x4_t dot(int32x4_t sum, int8x16_t q, int8x16_t d) {
    const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(q), vget_low_s8(d)));
    const int32x4_t high = vpaddlq_s16(vmull_s8(vget_high_s8(q), vget_high_s8(d)));
    return vaddq_s32(sum, vpaddq_s32(low, high));
  }
};

}  // namespace

const KernelTable kNeonKernels = {"neon",
                                  update_maxima<Neon>,
                                  products<Neon>,
                                  int8_maxima<PlainInt8>,
                                  int8_document<PlainInt8>,
                                  int8_dots<PlainInt8>,
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

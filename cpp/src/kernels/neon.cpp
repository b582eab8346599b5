// 64-bit Arm: NEON with FMA and half-precision conversion is part of the baseline.
#if defined(__aarch64__) || defined(_M_ARM64)

#include <arm_neon.h>

#include "lemur/kernels/half.hpp"
#include "lemur/kernels/inner_product.hpp"

namespace lemur {
namespace {

struct Neon {
  using type = float32x4_t;
  static constexpr int lanes = 4;
  static constexpr int tile_panels = 1;
  static constexpr int tile_tokens = 6;  // 6 x 4 sums, 4 query vectors, 1 broadcast: 29 of 32 registers
  static float32x4_t zero() { return vdupq_n_f32(0.0f); }
  static float32x4_t load(const float* p) { return vld1q_f32(p); }
  static float32x4_t broadcast(const float* p) { return vld1q_dup_f32(p); }
  static float32x4_t fma(float32x4_t a, float32x4_t b, float32x4_t c) { return vfmaq_f32(c, a, b); }
  static float32x4_t max(float32x4_t a, float32x4_t b) { return vmaxq_f32(a, b); }
  static void store(float* p, float32x4_t a) { vst1q_f32(p, a); }
};

void widen(const std::uint16_t* half, std::int64_t size, float* out) {
  std::int64_t i = 0;
  for (; i + 4 <= size; i += 4) vst1q_f32(out + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(half + i))));
  for (; i < size; ++i) out[i] = half_to_float(half[i]);
}

}  // namespace

const KernelTable kNeonKernels = {"neon", update_maxima<Neon>, products<Neon>, widen};

}  // namespace lemur

#endif

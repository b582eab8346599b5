// What all 64-bit Arm kernels share: float32 products and half-precision conversion.
#pragma once

#include <arm_neon.h>

#include "lemur/kernels/feature_rows.hpp"
#include "lemur/kernels/half.hpp"
#include "lemur/kernels/inner_product.hpp"
#include "lemur/kernels/int8_product.hpp"
#include "lemur/kernels/look_rows.hpp"
#include "lemur/kernels/small_rows.hpp"

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

struct Bytes16 {
  using type = uint8x16_t;
  using half = Bytes16;
  static constexpr int lanes = 16;
  static uint8x16_t zero() { return vdupq_n_u8(0); }
  static uint8x16_t load(const std::uint8_t* p) { return vld1q_u8(p); }
  static uint8x16_t max(uint8x16_t a, uint8x16_t b) { return vmaxq_u8(a, b); }
  static void store(std::uint8_t* p, uint8x16_t a) { vst1q_u8(p, a); }
};

struct Codes16 {
  using type = int8x16_t;
  using half = Codes16;
  using levels = int8x16_t;
  using sums = int32x4_t;
  static constexpr std::int64_t lanes = 16;
  static int8x16_t load(const std::int8_t* p) { return vld1q_s8(p); }
  static int8x16_t load(const std::uint8_t* p) { return vreinterpretq_s8_u8(vld1q_u8(p)); }
  static void store(std::int8_t* p, int8x16_t a) { vst1q_s8(p, a); }
  static int8x16_t table(const std::int16_t* levels, std::int16_t scale) {
    const int16x8_t factor = vdupq_n_s16(scale);
    return vcombine_s8(vqmovn_s16(vqrdmulhq_s16(vld1q_s16(levels), factor)),
                       vqmovn_s16(vqrdmulhq_s16(vld1q_s16(levels + 8), factor)));
  }
  template <int kBits>
  static int8x16_t level(int8x16_t levels, int8x16_t packed) {
    return vqtbl1q_s8(levels, vandq_u8(vreinterpretq_u8_s8(packed), vdupq_n_u8((1 << kBits) - 1)));
  }
  template <int kBits>
  static int8x16_t shift(int8x16_t packed) {
    return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(packed), kBits));
  }
  static uint8x16_t moved(int8x16_t a, int bits) {
    return vshlq_u8(vreinterpretq_u8_s8(a), vdupq_n_s8(static_cast<std::int8_t>(-bits)));
  }
  // Of each byte of one the two bits from `first` on, and above them bit `third` of the other.
  static int8x16_t joined(int8x16_t low, int first, int8x16_t high, int third) {
    const uint8x16_t bit = vshlq_n_u8(vandq_u8(moved(high, third), vdupq_n_u8(1)), 2);
    return vreinterpretq_s8_u8(vorrq_u8(vandq_u8(moved(low, first), vdupq_n_u8(3)), bit));
  }
  static int8x16_t add(int8x16_t a, int8x16_t b) { return vqaddq_s8(a, b); }
  static int32x4_t no_sum() { return vdupq_n_s32(0); }
  static int32x4_t add_sum(int32x4_t sum, int8x16_t a) { return vpadalq_s16(sum, vpaddlq_s8(a)); }
  static std::int32_t total(int32x4_t sum) { return vaddvq_s32(sum); }
};

// An int8 kernel but for its product.
struct NeonCodes {
  using codes = int8x16_t;
  using sums = int32x4_t;
  using floats = float32x4_t;
  static constexpr int lanes = 4;
  static constexpr std::int32_t offset = 0;
  static constexpr int tile_panels = 1;
  static constexpr int tile_tokens = 4;  // 4 x 4 sums, 4 query vectors, 1 broadcast: 21 of 32 registers
  static int8x16_t load(const std::int8_t* p) { return vld1q_s8(p); }
  static int8x16_t load_signed(const std::int8_t* p) { return load(p); }
  static int8x16_t broadcast(const std::int8_t* p) { return vreinterpretq_s8_s32(vdupq_n_s32(load_group(p))); }
  static int32x4_t start(std::int32_t) { return vdupq_n_s32(0); }
  static int32x4_t start_first(std::int32_t sum) { return vsetq_lane_s32(sum, vdupq_n_s32(0), 0); }
  static std::int32_t total(int32x4_t a) { return vaddvq_s32(a); }
  static int32x4_t load_sums(const std::int32_t* p) { return vld1q_s32(p); }
  static void store_sums(std::int32_t* p, int32x4_t a) { vst1q_s32(p, a); }
  static float32x4_t load_floats(const float* p) { return vld1q_f32(p); }
  static float32x4_t lowest() { return vdupq_n_f32(negative_infinity()); }
  static float32x4_t scale(int32x4_t a, float s) { return vmulq_n_f32(vcvtq_f32_s32(a), s); }
  static float32x4_t max(float32x4_t a, float32x4_t b) { return vmaxq_f32(a, b); }
  static void store(float* p, float32x4_t a) { vst1q_f32(p, a); }
};

}  // namespace
}  // namespace lemur

// One IEEE half-precision number to float32, exactly, in plain integer arithmetic.
#pragma once

#include <cstdint>

namespace lemur {
namespace {

inline float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t magnitude = half & 0x7fffu;
  union {
    std::uint32_t bits;
    float value;
  } out;
  if (magnitude >= 0x7c00u) {  // infinity or NaN
    out.bits = sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13);
  } else if (magnitude >= 0x400u) {
    // 13 more bits of fraction; exponents are stored with 15 added here, and with 127 there.
    out.bits = sign | ((magnitude << 13) + (112u << 23));
  } else {  // subnormal: an integer number of 2^-24
    out.value = static_cast<float>(magnitude) * 0x1p-24f;
    out.bits |= sign;
  }
  return out.value;
}

}  // namespace
}  // namespace lemur

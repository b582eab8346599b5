// int8 products with the VNNI instructions, for files compiled with them.
#pragma once

#include "lemur/kernels/avx512.hpp"

namespace lemur {
namespace {

struct Vnni : Avx512Codes {
  static constexpr std::int32_t offset = 128;
  static constexpr int tile_panels = 2;
  static constexpr int tile_tokens = 12;  // 12 x 2 sums, 2 query vectors, 1 broadcast: 27 of 32 registers
  // VNNI multiplies unsigned with signed codes: `load` reads q as q + 128, which is its sign bit turned over, and sums
  // start at -128 * sum of d. Sums wrap around rather than saturate, so nothing is lost on the way.
  static __m512i load(const std::int8_t* p) {
    return _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(static_cast<char>(0x80)));
  }
  static __m512i start(std::int32_t sum) { return _mm512_set1_epi32(-128 * sum); }
  static __m512i dot(__m512i sum, __m512i q, __m512i d) {
#if defined(__GNUC__) && !defined(__clang__)
    // GCC 12 makes copies of sums around its own intrinsic, too many for the registers: half the speed.
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(q), "v"(d));
    return sum;
#else
    return _mm512_dpbusd_epi32(sum, q, d);
#endif
  }
};

}  // namespace
}  // namespace lemur

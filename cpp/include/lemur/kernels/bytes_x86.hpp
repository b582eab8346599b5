// Bytes on x86-64 with AVX2: for the second look, where wider vectors would hold more than most queries have tokens,
// and for small codes.
#pragma once

#include <immintrin.h>

#include "lemur/kernels/look_rows.hpp"
#include "lemur/kernels/small_rows.hpp"

namespace lemur {
namespace {

struct Bytes16 {
  using type = __m128i;
  static constexpr int lanes = 16;
  static __m128i zero() { return _mm_setzero_si128(); }
  static __m128i load(const std::uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  static __m128i max(__m128i a, __m128i b) { return _mm_max_epu8(a, b); }
  static void store(std::uint8_t* p, __m128i a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), a); }
};

struct Bytes32 {
  using type = __m256i;
  using half = Bytes16;
  static constexpr int lanes = 32;
  static __m256i zero() { return _mm256_setzero_si256(); }
  static __m256i load(const std::uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static __m256i max(__m256i a, __m256i b) { return _mm256_max_epu8(a, b); }
  static void store(std::uint8_t* p, __m256i a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
};

struct Codes16 {
  using type = __m128i;
  using half = Codes16;
  using levels = __m128i;
  using sums = __m128i;
  static constexpr std::int64_t lanes = 16;
  static __m128i load(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
  static void store(void* p, __m128i a) { _mm_storeu_si128(static_cast<__m128i*>(p), a); }
  // (level * scale + 2^14) >> 15 of each, as bytes.
  static __m128i table(const std::int16_t* levels, std::int16_t scale) {
    const __m128i factor = _mm_set1_epi16(scale);
    return _mm_packs_epi16(_mm_mulhrs_epi16(load(levels), factor), _mm_mulhrs_epi16(load(levels + 8), factor));
  }
  template <int kBits>
  static __m128i level(__m128i levels, __m128i packed) {
    return _mm_shuffle_epi8(levels, _mm_and_si128(packed, _mm_set1_epi8((1 << kBits) - 1)));
  }
  // Bits of the next byte come along, and `level` drops them.
  template <int kBits>
  static __m128i shift(__m128i packed) {
    return _mm_srli_epi16(packed, kBits);
  }
  // Of each byte of one the two bits from `first` on, and above them bit `third` of the other.
  static __m128i joined(__m128i low, int first, __m128i high, int third) {
    const __m128i two = _mm_and_si128(_mm_srl_epi16(low, _mm_cvtsi32_si128(first)), _mm_set1_epi8(3));
    const __m128i bit = _mm_and_si128(_mm_srl_epi16(high, _mm_cvtsi32_si128(third)), _mm_set1_epi8(1));
    return _mm_or_si128(two, _mm_slli_epi16(bit, 2));
  }
  static __m128i add(__m128i a, __m128i b) { return _mm_adds_epi8(a, b); }
  static __m128i no_sum() { return _mm_setzero_si128(); }
  static __m128i add_sum(__m128i sum, __m128i a) {
    return _mm_add_epi64(sum, _mm_sub_epi64(_mm_sad_epu8(_mm_xor_si128(a, _mm_set1_epi8(-128)), _mm_setzero_si128()),
                                            _mm_set1_epi64x(8 * 128)));
  }
  static std::int32_t total(__m128i sum) { return _mm_cvtsi128_si32(_mm_add_epi64(sum, _mm_unpackhi_epi64(sum, sum))); }
};

struct Codes32 {
  using type = __m256i;
  using half = Codes16;
  using levels = __m256i;
  using sums = __m256i;
  static constexpr std::int64_t lanes = 32;
  static __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static void store(void* p, __m256i a) { _mm256_storeu_si256(static_cast<__m256i*>(p), a); }
  static __m256i table(const std::int16_t* levels, std::int16_t scale) {
    return _mm256_broadcastsi128_si256(Codes16::table(levels, scale));
  }
  template <int kBits>
  static __m256i level(__m256i levels, __m256i packed) {
    return _mm256_shuffle_epi8(levels, _mm256_and_si256(packed, _mm256_set1_epi8((1 << kBits) - 1)));
  }
  template <int kBits>
  static __m256i shift(__m256i packed) {
    return _mm256_srli_epi16(packed, kBits);
  }
  static __m256i add(__m256i a, __m256i b) { return _mm256_adds_epi8(a, b); }
  static __m256i no_sum() { return _mm256_setzero_si256(); }
  static __m256i add_sum(__m256i sum, __m256i a) {
    const __m256i above = _mm256_xor_si256(a, _mm256_set1_epi8(-128));
    return _mm256_add_epi64(
        sum, _mm256_sub_epi64(_mm256_sad_epu8(above, _mm256_setzero_si256()), _mm256_set1_epi64x(8 * 128)));
  }
  static std::int32_t total(__m256i sum) {
    return Codes16::total(_mm_add_epi64(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1)));
  }
};

}  // namespace
}  // namespace lemur

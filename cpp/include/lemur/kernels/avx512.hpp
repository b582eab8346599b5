// What all instruction sets with AVX-512 share: float32 products and half-precision conversion.
#pragma once

#include <immintrin.h>

#include "lemur/kernels/bytes_x86.hpp"
#include "lemur/kernels/feature_rows.hpp"
#include "lemur/kernels/half.hpp"
#include "lemur/kernels/inner_product.hpp"
#include "lemur/kernels/int8_product.hpp"

namespace lemur {
namespace {

struct Avx512 {
  using type = __m512;
  static constexpr int lanes = 16;
  static constexpr int tile_panels = 2;
  static constexpr int tile_tokens = 12;  // 12 x 2 sums, 2 query vectors, 1 broadcast: 27 of 32 registers
  static __m512 zero() { return _mm512_setzero_ps(); }
  static __m512 load(const float* p) { return _mm512_loadu_ps(p); }
  static __m512 broadcast(const float* p) { return _mm512_set1_ps(*p); }
  static __m512 fma(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
  static __m512 max(__m512 a, __m512 b) { return _mm512_max_ps(a, b); }
  static void store(float* p, __m512 a) { _mm512_storeu_ps(p, a); }
};

void widen(const std::uint16_t* half, std::int64_t size, float* out) {
  std::int64_t i = 0;
  for (; i + 16 <= size; i += 16)
    _mm512_storeu_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(half + i))));
  for (; i < size; ++i) out[i] = half_to_float(half[i]);
}

// An int8 kernel but for its product.
struct Avx512Codes {
  using codes = __m512i;
  using floats = __m512;
  using sums = __m512i;
  static constexpr int lanes = 16;
  static __m512i broadcast(const std::int8_t* p) { return _mm512_set1_epi32(load_group(p)); }
  static __m512i load_signed(const std::int8_t* p) { return _mm512_loadu_si512(p); }
  static __m512i start_first(std::int32_t sum) { return _mm512_zextsi128_si512(_mm_cvtsi32_si128(sum)); }
  static std::int32_t total(__m512i a) { return _mm512_reduce_add_epi32(a); }
  static __m512i load_sums(const std::int32_t* p) { return _mm512_loadu_si512(p); }
  static void store_sums(std::int32_t* p, __m512i a) { _mm512_storeu_si512(p, a); }
  static __m512 load_floats(const float* p) { return _mm512_loadu_ps(p); }
  static __m512 lowest() { return _mm512_set1_ps(negative_infinity()); }
  static __m512 scale(__m512i a, float s) { return _mm512_mul_ps(_mm512_cvtepi32_ps(a), _mm512_set1_ps(s)); }
  static __m512 max(__m512 a, __m512 b) { return _mm512_max_ps(a, b); }
  static void store(float* p, __m512 a) { _mm512_storeu_ps(p, a); }
};

struct Codes64 {
  using type = __m512i;
  using half = Codes32;
  using levels = __m512i;
  using sums = __m512i;
  static constexpr std::int64_t lanes = 64;
  static __m512i load(const void* p) { return _mm512_loadu_si512(p); }
  static void store(void* p, __m512i a) { _mm512_storeu_si512(p, a); }
  static __m512i table(const std::int16_t* levels, std::int16_t scale) {
    return _mm512_broadcast_i32x4(Codes16::table(levels, scale));
  }
  template <int kBits>
  static __m512i level(__m512i levels, __m512i packed) {
    return _mm512_shuffle_epi8(levels, _mm512_and_si512(packed, _mm512_set1_epi8((1 << kBits) - 1)));
  }
  template <int kBits>
  static __m512i shift(__m512i packed) {
    return _mm512_srli_epi16(packed, kBits);
  }
  static __m512i add(__m512i a, __m512i b) { return _mm512_adds_epi8(a, b); }
  static __m512i no_sum() { return _mm512_setzero_si512(); }
  static __m512i add_sum(__m512i sum, __m512i a) {
    const __m512i above = _mm512_xor_si512(a, _mm512_set1_epi8(-128));
    return _mm512_add_epi64(
        sum, _mm512_sub_epi64(_mm512_sad_epu8(above, _mm512_setzero_si512()), _mm512_set1_epi64(8 * 128)));
  }
  static std::int32_t total(__m512i sum) {
    return Codes32::total(_mm256_add_epi64(_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64(sum, 1)));
  }
};

// Codes of 1 to 3 bits of 65 to 128 components have fewer bytes than a vector: they are repeated, and each quarter of
// the vector is moved by the bits of its own part.
inline bool small_rows_of_128(const SmallBook& book, const SmallCodes& tokens, std::int8_t* rows, std::int32_t* sums) {
  const __m512i one_bit[2] = {_mm512_set_epi64(3, 3, 2, 2, 1, 1, 0, 0), _mm512_set_epi64(7, 7, 6, 6, 5, 5, 4, 4)};
  const __m512i two_bits[2] = {_mm512_set_epi64(2, 2, 2, 2, 0, 0, 0, 0), _mm512_set_epi64(6, 6, 6, 6, 4, 4, 4, 4)};
  const __m512i one = _mm512_set1_epi8(1);
  for (std::int64_t r = 0; r < tokens.num_rows; ++r) {
    if (tokens.centroids[r] >= book.num_centroids) return false;
    const __m512i levels = Codes64::table(book.levels, tokens.scales[r]);
    const std::int8_t* centroid = book.centroids + tokens.centroids[r] * book.stride;
    const std::uint8_t* codes = tokens.codes + r * book.num_bytes;
    __m512i low = _mm512_setzero_si512(), high = low, sum = Codes64::no_sum();
    if (book.bits > 1) low = _mm512_broadcast_i64x4(Codes32::load(codes));
    if (book.bits != 2) high = _mm512_broadcast_i32x4(Codes16::load(codes + (book.bits == 3 ? 32 : 0)));
    for (int half = 0; half < 2; ++half) {
      const __m512i lower = _mm512_and_si512(_mm512_srlv_epi64(low, two_bits[half]), _mm512_set1_epi8(3));
      const __m512i upper = _mm512_and_si512(_mm512_srlv_epi64(high, one_bit[half]), one);
      const __m512i chosen = book.bits == 3   ? _mm512_or_si512(lower, _mm512_slli_epi16(upper, 2))
                             : book.bits == 2 ? lower
                                              : upper;
      const __m512i values =
          Codes64::add(_mm512_shuffle_epi8(levels, chosen), Codes64::load(centroid + half * Codes64::lanes));
      Codes64::store(rows + r * book.stride + half * Codes64::lanes, values);
      sum = Codes64::add_sum(sum, values);
    }
    sums[r] = Codes64::total(sum);
  }
  return true;
}

inline bool small_rows_64(const SmallBook& book, const SmallCodes& tokens, std::int8_t* rows, std::int32_t* sums) {
  if (book.bits < 4 && book.dim > 64 && book.dim <= 128) return small_rows_of_128(book, tokens, rows, sums);
  return small_rows<Codes64>(book, tokens, rows, sums);
}

}  // namespace
}  // namespace lemur

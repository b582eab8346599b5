// Bytes for the second look on x86-64 with AVX2; wider vectors would hold more than most queries have tokens.
#pragma once

#include <immintrin.h>

#include "lemur/kernels/look_rows.hpp"

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

}  // namespace
}  // namespace lemur

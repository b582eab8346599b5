// x86-64 with AVX2, FMA and F16C.
#if defined(__x86_64__) || defined(_M_X64)

#include <immintrin.h>

#include "lemur/kernels/bytes_x86.hpp"
#include "lemur/kernels/feature_rows.hpp"
#include "lemur/kernels/half.hpp"
#include "lemur/kernels/inner_product.hpp"
#include "lemur/kernels/int8_product.hpp"

namespace lemur {
namespace {

struct Avx2 {
  using type = __m256;
  static constexpr int lanes = 8;
  static constexpr int tile_panels = 1;
  static constexpr int tile_tokens = 6;  // 6 x 2 sums, 2 query vectors, 1 broadcast: 15 of 16 registers
  static __m256 zero() { return _mm256_setzero_ps(); }
  static __m256 load(const float* p) { return _mm256_loadu_ps(p); }
  static __m256 broadcast(const float* p) { return _mm256_broadcast_ss(p); }
  static __m256 fma(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
  static __m256 max(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }
  static void store(float* p, __m256 a) { _mm256_storeu_ps(p, a); }
};

struct Avx2Int8 {
  using codes = __m256i;
  using sums = __m256i;
  using floats = __m256;
  static constexpr int lanes = 8;
  static constexpr std::int32_t offset = 0;
  static constexpr int tile_panels = 1;
  static constexpr int tile_tokens = 4;  // 4 x 2 sums, 2 query vectors, 3 of each document token: 13 of 16 registers
  static __m256i load(const std::int8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static __m256i load_signed(const std::int8_t* p) { return load(p); }
  static __m256i broadcast(const std::int8_t* p) { return _mm256_set1_epi32(load_group(p)); }
  static __m256i start(std::int32_t) { return _mm256_setzero_si256(); }
  static __m256i start_first(std::int32_t sum) { return _mm256_zextsi128_si256(_mm_cvtsi32_si128(sum)); }
  static __m256i dot(__m256i sum, __m256i q, __m256i d) {
    // |q| times d with the sign of q: 2 * 127 * 127 stays within 16 bits.
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(d, q));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static __m256i load_sums(const std::int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static void store_sums(std::int32_t* p, __m256i a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
  static std::int32_t total(__m256i a) {
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
  }
  static __m256 load_floats(const float* p) { return _mm256_loadu_ps(p); }
  static __m256 lowest() { return _mm256_set1_ps(negative_infinity()); }
  static __m256 scale(__m256i a, float s) { return _mm256_mul_ps(_mm256_cvtepi32_ps(a), _mm256_set1_ps(s)); }
  static __m256 max(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }
  static void store(float* p, __m256 a) { _mm256_storeu_ps(p, a); }
};

void widen(const std::uint16_t* half, std::int64_t size, float* out) {
  std::int64_t i = 0;
  for (; i + 8 <= size; i += 8)
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(half + i))));
  for (; i < size; ++i) out[i] = half_to_float(half[i]);
}

}  // namespace

const KernelTable kAvx2Kernels = {"avx2",
                                  update_maxima<Avx2>,
                                  products<Avx2>,
                                  int8_maxima<Avx2Int8>,
                                  int8_document<Avx2Int8>,
                                  int8_dots<Avx2Int8>,
                                  activate,
                                  normalise,
                                  widen,
                                  as_bytes,
                                  update_nearest,
                                  byte_maxima<Bytes32>,
                                  match_sums,
                                  small_rows<Codes32>};

}  // namespace lemur

#endif

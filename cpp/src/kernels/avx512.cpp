// x86-64 with AVX-512 F, BW, DQ and VL.
#if defined(__x86_64__) || defined(_M_X64)

#include <immintrin.h>

#include "lemur/kernels/half.hpp"
#include "lemur/kernels/inner_product.hpp"

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

}  // namespace

const KernelTable kAvx512Kernels = {"avx512", update_maxima<Avx512>, products<Avx512>, widen};

}  // namespace lemur

#endif

// x86-64 with AVX2, FMA and F16C.
#if defined(__x86_64__) || defined(_M_X64)

#include <immintrin.h>

#include "lemur/kernels/half.hpp"
#include "lemur/kernels/inner_product.hpp"

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

void widen(const std::uint16_t* half, std::int64_t size, float* out) {
  std::int64_t i = 0;
  for (; i + 8 <= size; i += 8)
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(half + i))));
  for (; i < size; ++i) out[i] = half_to_float(half[i]);
}

}  // namespace

const KernelTable kAvx2Kernels = {"avx2", update_maxima<Avx2>, products<Avx2>, widen};

}  // namespace lemur

#endif

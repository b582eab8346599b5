// x86-64 with AVX-512 F, BW, DQ, VL and VNNI.
#if defined(__x86_64__) || defined(_M_X64)

#include "lemur/kernels/avx512.hpp"

namespace lemur {
namespace {

struct Vnni : Avx512Codes {
  static constexpr int tile_panels = 2;
  static constexpr int tile_tokens = 12;
  // VNNI multiplies unsigned with signed codes: queries are read as q + 128, and sums start at -128 * sum of d.
  static __m512i load(const std::int8_t* p) {
    return _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(static_cast<char>(0x80)));
  }
  static __m512i start(std::int32_t sum) { return _mm512_set1_epi32(-128 * sum); }
  static __m512i dot(__m512i sum, __m512i q, __m512i d) { return _mm512_dpbusd_epi32(sum, q, d); }
};

}  // namespace

const KernelTable kAvx512VnniKernels = {"avx512_vnni", update_maxima<Avx512>, products<Avx512>, int8_maxima<Vnni>,
                                        widen};

}  // namespace lemur

#endif

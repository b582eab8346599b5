// x86-64 with AVX-512 F, BW, DQ and VL.
#if defined(__x86_64__) || defined(_M_X64)

#include "lemur/kernels/avx512.hpp"

namespace lemur {
namespace {

struct Avx512Int8 : Avx512Codes {
  static constexpr std::int32_t offset = 0;
  static constexpr int tile_panels = 2;
  static constexpr int tile_tokens =
      8;  // 8 x 2 sums, 2 x 2 query vectors, 3 of each document token: 23 of 32 registers
  static __m512i load(const std::int8_t* p) { return _mm512_loadu_si512(p); }
  static __m512i start(std::int32_t) { return _mm512_setzero_si512(); }
  static __m512i dot(__m512i sum, __m512i q, __m512i d) {
    // |q| times d with the sign of q: 2 * 127 * 127 stays within 16 bits.
    const __m512i signed_d = _mm512_mask_sub_epi8(d, _mm512_movepi8_mask(q), _mm512_setzero_si512(), d);
    const __m512i pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(q), signed_d);
    return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
  }
};

}  // namespace

const KernelTable kAvx512Kernels = {"avx512",
                                    update_maxima<Avx512>,
                                    products<Avx512>,
                                    int8_maxima<Avx512Int8>,
                                    int8_document<Avx512Int8>,
                                    int8_dots<Avx512Int8>,
                                    activate,
                                    normalise,
                                    widen,
                                    as_bytes,
                                    update_nearest,
                                    byte_maxima<Bytes32>,
                                    match_sums,
                                    small_rows_64};

}  // namespace lemur

#endif

// The int8 kernel for tiles, written over the tile unit T, which is the processor's or, in tests, a model of it.
//
// Tile registers hold 16 rows of 64 bytes: sums of 2 x 2 blocks (16 document tokens by 16 query tokens each) are in
// tiles 0 to 3, two blocks of document tokens in 4 and 5, two panels of query tokens in 6 and 7: sums 0 and 1 are of 4
// and 5 by 6, sums 2 and 3 of 4 and 5 by 7. So four tiles are loaded for four products; one block by one panel would
// load two for one. A panel of 64 components is laid out as the unit reads its second operand.
#pragma once

#include "lemur/kernels/int8_product.hpp"

namespace lemur {
namespace {

// 32 rows beginning with `rows` times P panels, to out[32][P * 16].
template <class T, int P>
inline void amx_block(const std::int8_t* panels, const std::int8_t* rows, std::int64_t stride, std::int32_t* out) {
  T::template zero<0>();
  T::template zero<1>();
  if (P == 2) {
    T::template zero<2>();
    T::template zero<3>();
  }
  for (std::int64_t k = 0; k < stride; k += kInt8Stride) {  // whole tiles: the codes from dim on are 0
    const std::int8_t* panel = panels + k * kPanelTokens;
    T::template load<4>(rows + k, stride);
    T::template load<5>(rows + 16 * stride + k, stride);
    T::template load<6>(panel, kInt8Stride);
    T::template dot<0>();
    T::template dot<1>();
    if (P == 2) {
      T::template load<7>(panel + stride * kPanelTokens, kInt8Stride);
      T::template dot<2>();
      T::template dot<3>();
    }
  }
  constexpr std::int64_t kWidth = P * kPanelTokens;
  T::template store<0>(out, kWidth * 4);
  T::template store<1>(out + 16 * kWidth, kWidth * 4);
  if (P == 2) {
    T::template store<2>(out + kPanelTokens, kWidth * 4);
    T::template store<3>(out + 16 * kWidth + kPanelTokens, kWidth * 4);
  }
}

template <class T, class V, int P>
inline void amx_panels(const std::int8_t* panels, const Int8Run& run, float* best, std::int64_t best_stride) {
  run_maxima<V, P, 32>(run, best, best_stride, [&](const std::int8_t* rows, const std::int32_t*, std::int32_t* out) {
    amx_block<T, P>(panels, rows, run.stride, out);
  });
}

template <class T, class V>
void amx_int8_maxima(const std::int8_t* panels, std::int64_t num_panels, const Int8Run& run, float* best) {
  const std::int64_t width = num_panels * kPanelTokens;
  T::configure();
  std::int64_t p = 0;
  for (; p + 2 <= num_panels; p += 2)
    amx_panels<T, V, 2>(panels + p * run.stride * kPanelTokens, run, best + p * kPanelTokens, width);
  if (p < num_panels) amx_panels<T, V, 1>(panels + p * run.stride * kPanelTokens, run, best + p * kPanelTokens, width);
  T::release();
}

}  // namespace
}  // namespace lemur

// The MaxSim kernel, written once over a small vector type V (lanes, load, broadcast, fma, max, store).
//
// Query tokens lie across the lanes and document tokens are broadcast, so the running maximum over document tokens is a
// plain vector maximum: no horizontal sums, and documents are read as they are stored. A tile keeps J document tokens times
// P panels of inner products in registers for the whole of dim.
#pragma once

#include "lemur/kernels/table.hpp"

namespace lemur {
namespace {  // internal linkage: every instruction set keeps its own copy

template <class V, int P, int J>
inline void tile(const float* panels, const float* tokens, std::int64_t dim, float* best) {
  constexpr int kVectors = P * static_cast<int>(kPanelTokens) / V::lanes;
  constexpr int kVectorsPerPanel = kVectors / P;
  typename V::type sums[J][kVectors];
  for (int j = 0; j < J; ++j)
    for (int v = 0; v < kVectors; ++v) sums[j][v] = V::zero();
  for (std::int64_t k = 0; k < dim; ++k) {
    typename V::type q[kVectors];
    for (int v = 0; v < kVectors; ++v)
      q[v] = V::load(panels + ((v / kVectorsPerPanel) * dim + k) * kPanelTokens + (v % kVectorsPerPanel) * V::lanes);
    for (int j = 0; j < J; ++j) {
      const typename V::type d = V::broadcast(tokens + j * dim + k);
      for (int v = 0; v < kVectors; ++v) sums[j][v] = V::fma(q[v], d, sums[j][v]);
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    typename V::type m = V::load(best + v * V::lanes);
    for (int j = 0; j < J; ++j) m = V::max(m, sums[j][v]);
    V::store(best + v * V::lanes, m);
  }
}

// Tiles of J tokens; the last one starts early enough to be whole, since a token seen twice changes no maximum.
template <class V, int P, int J>
inline void tiles(const float* panels, const float* tokens, std::int64_t num_tokens, std::int64_t dim, float* best) {
  std::int64_t j = 0;
  for (; j + J <= num_tokens; j += J) tile<V, P, J>(panels, tokens + j * dim, dim, best);
  if (j < num_tokens) tile<V, P, J>(panels, tokens + (num_tokens - J) * dim, dim, best);
}

template <class V, int P>
inline void panels_maxima(const float* panels, const float* tokens, std::int64_t num_tokens, std::int64_t dim,
                          float* best) {
  if (num_tokens >= V::tile_tokens)
    tiles<V, P, V::tile_tokens>(panels, tokens, num_tokens, dim, best);
  else if (num_tokens >= 3)
    tiles<V, P, 3>(panels, tokens, num_tokens, dim, best);
  else if (num_tokens >= 1)
    tiles<V, P, 1>(panels, tokens, num_tokens, dim, best);
}

template <class V>
void update_maxima(const float* panels, std::int64_t num_panels, const float* tokens, std::int64_t num_tokens,
                   std::int64_t dim, float* best) {
  std::int64_t p = 0;
  for (; p + V::tile_panels <= num_panels; p += V::tile_panels)
    panels_maxima<V, V::tile_panels>(panels + p * dim * kPanelTokens, tokens, num_tokens, dim, best + p * kPanelTokens);
  for (; p < num_panels; ++p)
    panels_maxima<V, 1>(panels + p * dim * kPanelTokens, tokens, num_tokens, dim, best + p * kPanelTokens);
}

}  // namespace
}  // namespace lemur

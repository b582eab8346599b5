// The inner-product kernels, written once over a small vector type V (lanes, load, broadcast, fma, max, store).
//
// For MaxSim, query tokens lie across the lanes and document tokens are broadcast, so the running maximum over document
// tokens is a plain vector maximum: no horizontal sums, and documents are read as they are stored. A tile keeps J rows
// (document tokens) times P panels (query tokens) of inner products in registers for the whole of their length. There
// are as many as have room: each load then serves more products, and a sum's additions, which wait for each other,
// leave room for those of other sums.
#pragma once

#include "lemur/kernels/table.hpp"

namespace lemur {
namespace {  // internal linkage: every instruction set keeps its own copy

template <class V, int P, int J>
struct Tile {
  static constexpr int kVectors = P * static_cast<int>(kPanelTokens) / V::lanes;
  static constexpr int kVectorsPerPanel = kVectors / P;
  typename V::type sums[J][kVectors];

  void multiply(const float* panels, const float* rows, std::int64_t stride, std::int64_t depth) {
    for (int j = 0; j < J; ++j)
      for (int v = 0; v < kVectors; ++v) sums[j][v] = V::zero();
    for (std::int64_t k = 0; k < depth; ++k) {
      typename V::type q[kVectors];
      for (int v = 0; v < kVectors; ++v)
        q[v] =
            V::load(panels + ((v / kVectorsPerPanel) * depth + k) * kPanelTokens + (v % kVectorsPerPanel) * V::lanes);
      for (int j = 0; j < J; ++j) {
        const typename V::type d = V::broadcast(rows + j * stride + k);
        for (int v = 0; v < kVectors; ++v) sums[j][v] = V::fma(q[v], d, sums[j][v]);
      }
    }
  }

  void update_maxima(float* best) const {
    for (int v = 0; v < kVectors; ++v) {
      typename V::type m = V::load(best + v * V::lanes);
      for (int j = 0; j < J; ++j) m = V::max(m, sums[j][v]);
      V::store(best + v * V::lanes, m);
    }
  }

  void store(float* out, std::int64_t out_stride) const {
    for (int j = 0; j < J; ++j)
      for (int v = 0; v < kVectors; ++v) V::store(out + j * out_stride + v * V::lanes, sums[j][v]);
  }
};

// Calls use(first row, tile) for tiles of J rows; the last one starts early enough to be whole, since a row seen twice
// changes neither a maximum nor a product.
template <class V, int P, int J, class Use>
inline void tiles(const float* panels, const float* rows, std::int64_t num_rows, std::int64_t stride,
                  std::int64_t depth, const Use& use) {
  for (std::int64_t j = 0; j < num_rows; j += J) {
    const std::int64_t first = j + J <= num_rows ? j : num_rows - J;
    Tile<V, P, J> tile;
    tile.multiply(panels, rows + first * stride, stride, depth);
    use(first, tile);
  }
}

// Where there are fewer rows than a whole tile has, tiles of 3 multiply at most 2 rows twice.
template <class V, int P, class Use>
inline void all_rows(const float* panels, const float* rows, std::int64_t num_rows, std::int64_t stride,
                     std::int64_t depth, const Use& use) {
  if (num_rows >= V::tile_tokens)
    tiles<V, P, V::tile_tokens>(panels, rows, num_rows, stride, depth, use);
  else if (num_rows >= 3)
    tiles<V, P, 3>(panels, rows, num_rows, stride, depth, use);
  else
    tiles<V, P, 1>(panels, rows, num_rows, stride, depth, use);
}

template <class V, int P>
inline void maxima_of(const float* panels, const float* tokens, std::int64_t num_tokens, std::int64_t dim,
                      float* best) {
  all_rows<V, P>(panels, tokens, num_tokens, dim, dim,
                 [best](std::int64_t, const auto& tile) { tile.update_maxima(best); });
}

template <class V>
void update_maxima(const float* panels, std::int64_t num_panels, const float* tokens, std::int64_t num_tokens,
                   std::int64_t dim, float* best) {
  std::int64_t p = 0;
  for (; p + V::tile_panels <= num_panels; p += V::tile_panels)
    maxima_of<V, V::tile_panels>(panels + p * dim * kPanelTokens, tokens, num_tokens, dim, best + p * kPanelTokens);
  for (; p < num_panels; ++p)
    maxima_of<V, 1>(panels + p * dim * kPanelTokens, tokens, num_tokens, dim, best + p * kPanelTokens);
}

template <class V, int P>
inline void products_of(const float* panels, const float* rows, std::int64_t num_rows, std::int64_t stride,
                        std::int64_t depth, float* out, std::int64_t out_stride) {
  all_rows<V, P>(panels, rows, num_rows, stride, depth, [out, out_stride](std::int64_t first, const auto& tile) {
    tile.store(out + first * out_stride, out_stride);
  });
}

template <class V>
void products(const float* panels, std::int64_t num_panels, const float* rows, std::int64_t num_rows,
              std::int64_t stride, std::int64_t depth, float* out) {
  const std::int64_t width = num_panels * kPanelTokens;
  std::int64_t p = 0;
  for (; p + V::tile_panels <= num_panels; p += V::tile_panels)
    products_of<V, V::tile_panels>(panels + p * depth * kPanelTokens, rows, num_rows, stride, depth,
                                   out + p * kPanelTokens, width);
  for (; p < num_panels; ++p)
    products_of<V, 1>(panels + p * depth * kPanelTokens, rows, num_rows, stride, depth, out + p * kPanelTokens, width);
}

}  // namespace
}  // namespace lemur

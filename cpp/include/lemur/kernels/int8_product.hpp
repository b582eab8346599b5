// The int8 kernels, written once over a small integer vector type V (lanes, load, load_signed, broadcast, offset,
// start, dot, load_sums, store_sums, total, scale, max, store). For MaxSim they are laid out as in inner_product.hpp:
// query tokens across the lanes, document tokens broadcast.
#pragma once

#include "lemur/kernels/prefetch.hpp"
#include "lemur/kernels/table.hpp"

namespace lemur {
namespace {  // internal linkage: every instruction set keeps its own copy

inline float negative_infinity() {
  union {
    std::uint32_t bits;
    float value;
  } out;
  out.bits = 0xff800000u;
  return out.value;
}

// Four codes as they lie in memory; a union, since <cstring> stays outside.
inline std::int32_t load_group(const std::int8_t* p) {
  union {
    std::int8_t bytes[4];
    std::int32_t value;
  } out;
  for (int i = 0; i < 4; ++i) out.bytes[i] = p[i];
  return out.value;
}

// Follows the rows of a run in order, and keeps the running maxima of the document they belong to.
template <class V, int kVectors>
class RunMaxima {
 public:
  RunMaxima(const Int8Run& run, float* best, std::int64_t best_stride)
      : run_(run), best_(best), best_stride_(best_stride) {
    clear();
  }

  // The products of one row, in order of rows.
  void add(std::int64_t row, const std::int32_t* sums) {
    while (row == run_.offsets[document_ + 1]) finish_document();  // and documents without rows
    for (int v = 0; v < kVectors; ++v)
      maxima_[v] = V::max(maxima_[v], V::scale(V::load_sums(sums + v * V::lanes), run_.scales[row]));
  }

  void finish() {
    while (document_ < run_.num_documents) finish_document();
  }

 private:
  void clear() {
    for (int v = 0; v < kVectors; ++v) maxima_[v] = V::lowest();
  }

  void finish_document() {
    for (int v = 0; v < kVectors; ++v) V::store(best_ + document_ * best_stride_ + v * V::lanes, maxima_[v]);
    ++document_;
    clear();
  }

  const Int8Run& run_;
  float* best_;
  std::int64_t best_stride_;
  std::int64_t document_ = 0;
  typename V::floats maxima_[kVectors];
};

// Maxima of P panels over a run, kRows rows at a time: block(rows, out) writes their sums of codes, (kRows, P * 16).
// Blocks do not mind where documents end, so that short ones fill them too; the last may read up to kRows - 1 rows
// beyond the run, which kInt8Padding allows for, and drops them.
template <class V, int P, int kRows, class Block>
inline void run_maxima(const Int8Run& run, float* best, std::int64_t best_stride, const Block& block) {
  constexpr int kWidth = P * static_cast<int>(kPanelTokens), kVectors = kWidth / V::lanes;
  const std::int64_t num_rows = run.offsets[run.num_documents];
  RunMaxima<V, kVectors> maxima(run, best, best_stride);
  alignas(64) std::int32_t out[kRows * kWidth];
  for (std::int64_t first = run.offsets[0]; first < num_rows; first += kRows) {
    block(run.codes + first * run.stride, run.sums + first, out);
    const std::int64_t end = first + kRows < num_rows ? first + kRows : num_rows;
    for (std::int64_t row = first; row < end; ++row) maxima.add(row, out + (row - first) * kWidth);
  }
  maxima.finish();
}

// out[j * P * 16 + t] = <query token t, row j> for P panels and J rows, in registers for the whole of their length.
// Only `groups` of four components are multiplied, those that dim has, and not the zeros up to the stride.
template <class V, int P, int J>
inline void int8_tile(const std::int8_t* panels, const std::int8_t* rows, const std::int32_t* row_sums,
                      std::int64_t stride, std::int64_t groups, std::int32_t* out) {
  constexpr int kVectorsPerPanel = static_cast<int>(kPanelTokens) / V::lanes, kVectors = P * kVectorsPerPanel;
  typename V::sums sums[J][kVectors];
  for (int j = 0; j < J; ++j)
    for (int v = 0; v < kVectors; ++v) sums[j][v] = V::start(row_sums[j]);
  for (std::int64_t k = 0; k < groups; ++k) {
    typename V::codes q[kVectors];
    for (int v = 0; v < kVectors; ++v)
      q[v] = V::load(panels + (v / kVectorsPerPanel) * stride * kPanelTokens + k * 4 * kPanelTokens +
                     (v % kVectorsPerPanel) * V::lanes * 4);
    for (int j = 0; j < J; ++j) {
      const typename V::codes d = V::broadcast(rows + j * stride + 4 * k);
      for (int v = 0; v < kVectors; ++v) sums[j][v] = V::dot(sums[j][v], q[v], d);
    }
  }
  for (int j = 0; j < J; ++j)
    for (int v = 0; v < kVectors; ++v) V::store_sums(out + (j * kVectors + v) * V::lanes, sums[j][v]);
}

template <class V, int P>
inline void int8_panels(const std::int8_t* panels, const Int8Run& run, float* best, std::int64_t best_stride) {
  constexpr int J = V::tile_tokens;
  const std::int64_t stride = run.stride, groups = (run.dim + 3) / 4;
  run_maxima<V, P, J>(run, best, best_stride,
                      [=](const std::int8_t* rows, const std::int32_t* row_sums, std::int32_t* out) {
                        int8_tile<V, P, J>(panels, rows, row_sums, stride, groups, out);
                      });
}

// Two rows at a time, so that one's sum over the lanes hides behind the other's products. One query leaves no tokens
// for the lanes, so here components lie across them; and the rows, which are many, go through V::load, so that what its
// offset adds is the same for all of them.
template <class V>
void int8_dots(const std::int8_t* query, const std::int8_t* codes, std::int64_t stride, const std::int32_t* rows,
               std::int64_t num_rows, std::int32_t* out) {
  constexpr int kBytes = V::lanes * 4;
  typename V::sums start = V::start(0);
  if (V::offset != 0) {  // V::load adds it to every component of a row
    std::int32_t sum = 0;
    for (std::int64_t k = 0; k < stride; ++k) sum += query[k];
    start = V::start_first(-V::offset * sum);  // in one lane, since all are added up
  }
  for (std::int64_t i = 0; i < num_rows; i += 2) {
    const std::int64_t j = i + 1 < num_rows ? i + 1 : i;
    const std::int8_t* a = codes + (rows == nullptr ? i : rows[i]) * stride;
    const std::int8_t* b = codes + (rows == nullptr ? j : rows[j]) * stride;
    typename V::sums sum_a = start, sum_b = start;
    for (std::int64_t k = 0; k < stride; k += kBytes) {
      const typename V::codes q = V::load_signed(query + k);
      sum_a = V::dot(sum_a, V::load(a + k), q);
      sum_b = V::dot(sum_b, V::load(b + k), q);
    }
    out[i] = V::total(sum_a);
    out[j] = V::total(sum_b);
  }
}

template <class V>
void int8_maxima(const std::int8_t* panels, std::int64_t num_panels, const Int8Run& run, float* best) {
  std::int64_t p = 0;
  const std::int64_t width = num_panels * kPanelTokens, panel_bytes = run.stride * kPanelTokens;
  for (; p + V::tile_panels <= num_panels; p += V::tile_panels)
    int8_panels<V, V::tile_panels>(panels + p * panel_bytes, run, best + p * kPanelTokens, width);
  for (; p < num_panels; ++p) int8_panels<V, 1>(panels + p * panel_bytes, run, best + p * kPanelTokens, width);
}

// J rows at a time; the last are taken early enough to be J, since a row seen twice changes no maximum. Codes that are
// kept have no padding behind them.
template <class V, int P, int J>
inline void document_tiles(const std::int8_t* panels, const Int8Document& document, float* best) {
  constexpr int kWidth = P * static_cast<int>(kPanelTokens);
  const std::int64_t stride = document.stride, groups = (document.dim + 3) / 4;
  for (int t = 0; t < kWidth; t += V::lanes) V::store(best + t, V::lowest());
  alignas(64) std::int32_t out[J * kWidth];
  std::int64_t fetched = 0;
  for (std::int64_t row = 0; row < document.num_rows; row += J) {
    for (std::int64_t end = fetched + J * stride; fetched < end && fetched < document.ahead_bytes;
         fetched += kCacheLine)
      prefetch(document.ahead + fetched);
    const std::int64_t first = row + J <= document.num_rows ? row : document.num_rows - J;
    int8_tile<V, P, J>(panels, document.codes + first * stride, document.sums + first, stride, groups, out);
    for (int t = 0; t < kWidth; t += V::lanes) {
      typename V::floats m = V::load_floats(best + t);
      for (int j = 0; j < J; ++j)
        m = V::max(m, V::scale(V::load_sums(out + j * kWidth + t), document.scales[first + j]));
      V::store(best + t, m);
    }
  }
}

template <class V, int P>
inline void document_panels(const std::int8_t* panels, const Int8Document& document, float* best) {
  if (document.num_rows >= V::tile_tokens)
    document_tiles<V, P, V::tile_tokens>(panels, document, best);
  else if (document.num_rows >= 3)
    document_tiles<V, P, 3>(panels, document, best);
  else
    document_tiles<V, P, 1>(panels, document, best);
}

template <class V>
void int8_document(const std::int8_t* panels, std::int64_t num_panels, const Int8Document& document, float* best) {
  std::int64_t p = 0;
  const std::int64_t panel_bytes = document.stride * kPanelTokens;
  for (; p + V::tile_panels <= num_panels; p += V::tile_panels)
    document_panels<V, V::tile_panels>(panels + p * panel_bytes, document, best + p * kPanelTokens);
  for (; p < num_panels; ++p) document_panels<V, 1>(panels + p * panel_bytes, document, best + p * kPanelTokens);
}

}  // namespace
}  // namespace lemur

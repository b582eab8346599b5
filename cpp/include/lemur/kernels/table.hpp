// What one instruction set provides. Files of cpp/src/kernels include only <cstddef>, <cstdint>, intrinsics and this
// folder: an inline function of the standard library compiled there could be kept by the linker for every caller.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lemur {

// Query tokens are packed in panels of 16: panel p holds, for each k < dim, the k-th component of tokens 16p .. 16p
// + 15.
constexpr std::int64_t kPanelTokens = 16;
static constexpr std::int64_t panels_of(std::int64_t num_tokens) {
  return (num_tokens + kPanelTokens - 1) / kPanelTokens;
}

// Documents as int8 codes: component k of row r is codes[r * stride + k] * scales[r]. Document i is the rows offsets[i]
// .. offsets[i + 1]. `stride` is a multiple of kInt8Stride; codes from dim on are 0, and kInt8Padding rows can be read
// beyond the last.
struct Int8Run {
  const std::int8_t* codes;
  const float* scales;
  const std::int32_t* sums;  // of each row's codes
  const std::int64_t* offsets;
  std::int64_t num_documents;
  std::int64_t dim;
  std::int64_t stride;
};
constexpr std::int64_t kInt8Stride = 64;
constexpr std::int64_t kInt8Padding = 32;
constexpr std::int64_t kMaxInt8Dim = 131072;  // 127 * 127 * 131072 is below 2^31, in which products of codes are summed
static constexpr std::int64_t int8_stride(std::int64_t dim) {
  return (dim + kInt8Stride - 1) / kInt8Stride * kInt8Stride;
}

// One document the same way, but nothing is read beyond its last row.
struct Int8Document {
  const std::int8_t* codes;
  const float* scales;
  const std::int32_t* sums;
  std::int64_t num_rows;
  std::int64_t dim;
  std::int64_t stride;
  const std::int8_t* ahead;  // to be fetched meanwhile, bit by bit: all at once would wait for memory
  std::int64_t ahead_bytes;
};

// Small codes of tokens, with which an int8 row is decoded: that of the token's centroid, and beside it a level for
// each component. `num_bytes` of codes a token, a multiple of kSmallBytes: code p of a row is bits (p / num_bytes) *
// bits and up of byte p % num_bytes. Three bits are codes of two, and after them codes of one, the third.
struct SmallBook {
  int bits;  // 1 to 4
  std::int64_t dim;
  std::int64_t num_bytes;  // small_bytes(dim, bits)
  std::int64_t num_centroids;
  std::int64_t stride;           // of rows, at least small_columns(dim, bits)
  const std::int8_t* centroids;  // (num_centroids, stride)
  const std::int16_t* levels;    // (16,), in units of 1 / 8; those beyond 2^bits are 0
};
constexpr std::int64_t kSmallBytes = 16;
static constexpr std::int64_t small_bytes(std::int64_t dim, std::int64_t bits) {
  if (bits == 3) return small_bytes(dim, 2) + small_bytes(dim, 1);
  return (dim * bits + 8 * kSmallBytes - 1) / (8 * kSmallBytes) * kSmallBytes;
}
// How many components have room in them.
static constexpr std::int64_t small_columns(std::int64_t dim, std::int64_t bits) {
  return bits == 3 ? small_columns(dim, 2) : small_bytes(dim, bits) * 8 / bits;
}

struct SmallCodes {
  const std::uint8_t* codes;       // (num_rows, num_bytes)
  const std::uint16_t* centroids;  // (num_rows,)
  const std::int16_t* scales;      // (num_rows,): levels are multiplied by scale / 2^12, and rounded, a half up
  std::int64_t num_rows;
};

enum class Activation { kGelu, kRelu, kSilu, kMish };

struct KernelTable {
  const char* isa;

  // best[t] = max(best[t], max over j of <query token t, document token j>) for the num_panels * 16 packed query
  // tokens. `tokens` is (num_tokens, dim), row-major. Each inner product is summed in the order of k with one rounding
  // a step, so avx2, avx512 and neon agree bit for bit, whatever the blocking; scalar rounds twice where it has no FMA.
  void (*update_maxima)(const float* panels, std::int64_t num_panels, const float* tokens, std::int64_t num_tokens,
                        std::int64_t dim, float* best);

  // out[j * num_panels * 16 + t] = <packed vector t, row j> over `depth` components; rows lie `stride` floats apart.
  // Summed like update_maxima, so that a product does not depend on what stands beside it.
  void (*products)(const float* panels, std::int64_t num_panels, const float* rows, std::int64_t num_rows,
                   std::int64_t stride, std::int64_t depth, float* out);

  // best[i * num_panels * 16 + t] = max over rows r of document i of <codes of query token t, codes of r> * scales[r];
  // -infinity for a document without rows. The panels of 16 query tokens hold int8 in groups of four components: byte 4
  // * t + k % 4 of group k / 4, stride / 4 groups a panel. Sums of codes are exact integers, so every instruction set
  // gives the same bits.
  void (*int8_maxima)(const std::int8_t* panels, std::int64_t num_panels, const Int8Run& run, float* best);

  // The same of one document: best has num_panels * 16 elements.
  void (*int8_document)(const std::int8_t* panels, std::int64_t num_panels, const Int8Document& document, float* best);

  // out[i] = <codes of the query, codes of row rows[i]>, or of row i where rows is null; `stride` codes each, a
  // multiple of kInt8Stride. Exact integers too.
  void (*int8_dots)(const std::int8_t* query, const std::int8_t* codes, std::int64_t stride, const std::int32_t* rows,
                    std::int64_t num_rows, std::int32_t* out);

  // What query features need between products: x = scale * activation(x); and layer normalisation with weight and bias,
  // or without where they are null. To a few units in the last place on every instruction set, not to the last bit.
  void (*activate)(float* x, std::int64_t size, Activation activation, float scale);
  void (*normalise)(float* x, std::int64_t size, const float* weight, const float* bias, float epsilon);

  // float32 values of `size` IEEE half-precision numbers.
  void (*widen)(const std::uint16_t* half, std::int64_t size, float* out);

  // out[row * width + t] = values[row * width + t] * factors[t], within 0 .. 255 and rounded, a half up.
  void (*as_bytes)(const float* values, std::int64_t num_rows, std::int64_t width, const float* factors,
                   std::uint8_t* out);

  // Where values[row * width + t] is above largest[t], takes it there, and nearest[t] = first + row.
  void (*update_nearest)(const float* values, std::int64_t num_rows, std::int64_t width, std::int32_t first,
                         float* largest, std::int32_t* nearest);

  // best[t] = the largest of table[row * width + t] over `count` rows, 0 of none; width is a multiple of kPanelTokens.
  // False where one of them is not below num_rows.
  bool (*byte_maxima)(const std::uint8_t* table, std::int64_t width, std::int64_t num_rows, const std::uint16_t* rows,
                      std::int64_t count, std::uint8_t* best);

  // Of a document's token maxima, whole panels: their sum; the sum of z = (64 * maxima[t] - means[t]) * factors[t] /
  // 2^16, rounded down; and the sum of the squares of the z above 0, which are below 2^12.
  void (*match_sums)(const std::uint8_t* maxima, std::int64_t width, const std::int16_t* means,
                     const std::int16_t* factors, std::int64_t* out);

  // Rows (num_rows, stride) of int8, and the sum of each: centroid plus scaled level, within -128 .. 127. False where
  // a centroid is not below num_centroids.
  bool (*small_rows)(const SmallBook& book, const SmallCodes& tokens, std::int8_t* rows, std::int32_t* sums);
};

extern const KernelTable kScalarKernels;
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512Kernels;
extern const KernelTable kAvx512VnniKernels;
extern const KernelTable kAmxKernels;
extern const KernelTable kNeonKernels;
extern const KernelTable kNeonDotprodKernels;

}  // namespace lemur

// What the second look does with bytes: similarities as bytes, and their maxima over a document's tokens. Written once
// over a vector of bytes B (lanes, load, max, store).
#pragma once

#include "lemur/kernels/prefetch.hpp"
#include "lemur/kernels/table.hpp"

namespace lemur {
namespace {  // internal linkage: every instruction set keeps its own copy

// Clamped before it is rounded, so that no compiler fuses the product with the sum: all give the same bytes.
void as_bytes(const float* values, std::int64_t num_rows, std::int64_t width, const float* factors, std::uint8_t* out) {
  for (std::int64_t row = 0; row < num_rows; ++row)
    for (std::int64_t t = 0; t < width; ++t) {
      float value = values[row * width + t] * factors[t];
      value = value > 0.0f ? value : 0.0f;
      value = value < 255.0f ? value : 255.0f;
      out[row * width + t] = static_cast<std::uint8_t>(static_cast<std::int32_t>(value + 0.5f));
    }
}

void update_nearest(const float* values, std::int64_t num_rows, std::int64_t width, std::int32_t first, float* largest,
                    std::int32_t* nearest) {
  for (std::int64_t row = 0; row < num_rows; ++row)
    for (std::int64_t t = 0; t < width; ++t) {
      const float value = values[row * width + t], before = largest[t];
      nearest[t] = value > before ? first + static_cast<std::int32_t>(row) : nearest[t];
      largest[t] = value > before ? value : before;
    }
}

// Whole numbers, so that all orders of summation give the same.
void match_sums(const std::uint8_t* maxima, std::int64_t width, const std::int16_t* means, const std::int16_t* factors,
                std::int64_t* out) {
  constexpr std::int64_t kBlock = kPanelTokens;
  for (int i = 0; i < 3; ++i) out[i] = 0;
  for (std::int64_t begin = 0; begin < width; begin += kBlock) {
    std::int32_t sum = 0, above = 0, squares = 0;
    for (std::int64_t t = begin; t < begin + kBlock; ++t) {
      const std::int16_t distance = static_cast<std::int16_t>(maxima[t] * 64 - means[t]);
      std::int16_t z = static_cast<std::int16_t>((static_cast<std::int32_t>(distance) * factors[t]) >> 16);
      sum += maxima[t];
      above += z;
      z = z > 0 ? z : static_cast<std::int16_t>(0);
      squares += z * z;
    }
    out[0] += sum;
    out[1] += above;
    out[2] += squares;
  }
}

// kVectors of bytes of each row, in registers for the whole of a document.
template <class B, int kVectors>
inline bool byte_maxima_of(const std::uint8_t* table, std::int64_t width, std::int64_t num_rows,
                           const std::uint16_t* rows, std::int64_t count, std::uint8_t* best) {
  typename B::type maxima[kVectors];
  for (int v = 0; v < kVectors; ++v) maxima[v] = B::zero();
  for (std::int64_t i = 0; i < count; ++i) {
    if (rows[i] >= num_rows) return false;
    const std::uint8_t* row = table + rows[i] * width;
    for (int v = 0; v < kVectors; ++v) maxima[v] = B::max(maxima[v], B::load(row + v * B::lanes));
  }
  for (int v = 0; v < kVectors; ++v) B::store(best + v * B::lanes, maxima[v]);
  return true;
}

template <class B>
bool byte_maxima(const std::uint8_t* table, std::int64_t width, std::int64_t num_rows, const std::uint16_t* rows,
                 std::int64_t count, std::uint8_t* best) {
  constexpr std::int64_t kMost = 2 * kPanelTokens;
  std::int64_t t = 0;
  bool inside = true;
  for (; t + kMost <= width; t += kMost)
    inside &= byte_maxima_of<B, static_cast<int>(kMost) / B::lanes>(table + t, width, num_rows, rows, count, best + t);
  if (t < width)  // one panel of 16
    inside &= byte_maxima_of<typename B::half, static_cast<int>(kPanelTokens) / B::half::lanes>(
        table + t, width, num_rows, rows, count, best + t);
  return inside;
}

}  // namespace
}  // namespace lemur

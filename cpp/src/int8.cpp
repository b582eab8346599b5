#include "lemur/int8.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "lemur/cpu.hpp"
#include "lemur/parallel.hpp"

namespace lemur {
namespace {

constexpr float kLargestCode = 127.0f;
constexpr float kSmallest = 1e-30f;  // a row of smaller components counts as zero: 127 / kSmallest is still finite;
                                     // so does one with an infinite component, since scales are finite

}  // namespace

float quantise(const float* row, std::int64_t dim, std::int8_t* codes) {
  float largest = 0.0f;
  for (std::int64_t k = 0; k < dim; ++k) largest = std::max(largest, std::fabs(row[k]));
  if (!(largest > kSmallest && largest <= std::numeric_limits<float>::max())) {
    std::fill_n(codes, dim, std::int8_t{0});
    return 1.0f;
  }
  // Codes are within -127 .. 127: never -128, whose negative the kernels' 8-bit arithmetic does not have.
  const float inverse = kLargestCode / largest;
  // In float64 the product is exact, so that a compiler may fuse it with the sum, as GCC does for Arm, and change no
  // code.
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52: adding it leaves no bits for a fraction
  for (std::int64_t k = 0; k < dim; ++k) {
    const double shifted = static_cast<double>(row[k]) * inverse + kRound;
    codes[k] = static_cast<std::int8_t>(static_cast<std::int32_t>(shifted - kRound));
  }
  return largest / kLargestCode;
}

void quantise_rows(const float* rows, std::int64_t num_rows, std::int64_t dim, const CodedRows& out) {
  const std::int64_t stride = int8_stride(dim);
  for (std::int64_t r = 0; r < num_rows; ++r) {
    std::int8_t* codes = out.codes + r * stride;
    out.scales[r] = quantise(rows + r * dim, dim, codes);
    std::fill(codes + dim, codes + stride, std::int8_t{0});
    std::int32_t sum = 0;
    for (std::int64_t k = 0; k < dim; ++k) sum += codes[k];
    out.sums[r] = sum;
  }
}

void quantise_tokens(const TokenView& tokens, const CodedRows& out, int num_threads) {
  constexpr std::int64_t kRows = 1024;
  const KernelTable& kernels = active_kernels();
  const std::int64_t stride = int8_stride(tokens.dim);
  parallel_for((tokens.num_tokens + kRows - 1) / kRows, num_threads, [&] {
    return [&, widened = std::vector<float>()](std::int64_t task) mutable {
      const std::int64_t begin = task * kRows, rows = std::min(kRows, tokens.num_tokens - begin);
      const auto* floats = static_cast<const float*>(tokens.row(begin));
      if (tokens.type == TokenType::kFloat16) {
        widened.resize(static_cast<std::size_t>(kRows * tokens.dim));
        kernels.widen(static_cast<const std::uint16_t*>(tokens.row(begin)), rows * tokens.dim, widened.data());
        floats = widened.data();
      }
      quantise_rows(floats, rows, tokens.dim, {out.codes + begin * stride, out.scales + begin, out.sums + begin});
    };
  });
}

void Int8Rows::append(const float* rows, std::int64_t num_rows) {
  // Rows beyond the last are read along with it and thrown away: any value will do, but they must be there.
  const std::int64_t total = num_rows_ + num_rows, readable = total + kInt8Padding;
  codes_.resize(static_cast<std::size_t>(readable * stride_));
  scales_.resize(static_cast<std::size_t>(readable));
  sums_.resize(static_cast<std::size_t>(readable));
  quantise_rows(rows, num_rows, dim_,
                {codes_.data() + num_rows_ * stride_, scales_.data() + num_rows_, sums_.data() + num_rows_});
  num_rows_ = total;
}

Int8Panels::Int8Panels(const float* tokens, std::int64_t num_tokens, std::int64_t dim, std::int64_t stride)
    : stride_(stride) {
  const std::int64_t num_panels = panels_of(num_tokens);
  codes_.assign(static_cast<std::size_t>(num_panels * kPanelTokens * stride_), 0);
  scales_.assign(static_cast<std::size_t>(num_panels * kPanelTokens), 1.0f);
  std::vector<std::int8_t> row(static_cast<std::size_t>(dim));
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    scales_[t] = quantise(tokens + t * dim, dim, row.data());
    std::int8_t* panel = codes_.data() + t / kPanelTokens * stride_ * kPanelTokens + t % kPanelTokens * 4;
    for (std::int64_t k = 0; k < dim; ++k) panel[k / 4 * 4 * kPanelTokens + k % 4] = row[k];
  }
}

}  // namespace lemur

// Tokens as int8 codes with one scale each: component k of a token is about code[k] * scale, scale = max |component| /
// 127. With |x|_1 the sum and max |x| the largest of the magnitudes, an inner product of two tokens x and y is then off
// by at most (max |x| |y|_1 + |x|_1 max |y|) / 254 + dim max |x| max |y| / 254^2: about 0.001 |x| |y| on the average
// for normally distributed components from 64 dimensions on, but more where few components outweigh all others.
#pragma once

#include <cstdint>
#include <vector>

#include "lemur/kernels/table.hpp"
#include "lemur/views.hpp"

namespace lemur {

// Writes the codes of `dim` components and returns their scale; rounds half to even.
float quantise(const float* row, std::int64_t dim, std::int8_t* codes);

struct CodedRows {
  std::int8_t* codes;  // (num_rows, int8_stride(dim))
  float* scales;
  std::int32_t* sums;
};

void quantise_rows(const float* rows, std::int64_t num_rows, std::int64_t dim, const CodedRows& out);

// The codes of a matrix of tokens.
void quantise_tokens(const TokenView& tokens, const CodedRows& out, int num_threads);

// Rows of codes laid out as kernels read documents (Int8Run in kernels/table.hpp).
class Int8Rows {
 public:
  explicit Int8Rows(std::int64_t dim) : dim_(dim), stride_(int8_stride(dim)) {}

  void clear() { num_rows_ = 0; }
  void append(const float* rows, std::int64_t num_rows);

  // The rows as documents offsets[i] .. offsets[i + 1].
  Int8Run run(const std::int64_t* offsets, std::int64_t num_documents) const {
    return {codes_.data(), scales_.data(), sums_.data(), offsets, num_documents, dim_, stride_};
  }

 private:
  std::int64_t dim_, stride_, num_rows_ = 0;
  std::vector<std::int8_t> codes_;
  std::vector<float> scales_;
  std::vector<std::int32_t> sums_;
};

// Query tokens in panels of 16, as kernels read them.
class Int8Panels {
 public:
  // `stride` is that of the rows they are multiplied by; int8_stride(dim), or more.
  Int8Panels(const float* tokens, std::int64_t num_tokens, std::int64_t dim, std::int64_t stride);
  Int8Panels(const float* tokens, std::int64_t num_tokens, std::int64_t dim)
      : Int8Panels(tokens, num_tokens, dim, int8_stride(dim)) {}

  std::int64_t num_panels() const { return static_cast<std::int64_t>(scales_.size()) / kPanelTokens; }
  const std::int8_t* panel(std::int64_t p) const { return codes_.data() + p * stride_ * kPanelTokens; }
  float scale(std::int64_t token) const { return scales_[token]; }

 private:
  std::int64_t stride_;
  std::vector<std::int8_t> codes_;
  std::vector<float> scales_;
};

}  // namespace lemur

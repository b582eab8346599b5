// Non-owning views of the caller's buffers. Nothing here copies or frees.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "lemur/read_ahead.hpp"

namespace lemur {

enum class TokenType { kFloat32, kFloat16 };

// Token vectors: (num_tokens, dim), row-major, without gaps.
struct TokenView {
  const void* data = nullptr;
  TokenType type = TokenType::kFloat32;
  std::int64_t num_tokens = 0;
  std::int64_t dim = 0;

  const void* row(std::int64_t token) const {
    const std::int64_t size_bytes = type == TokenType::kFloat32 ? 4 : 2;
    return static_cast<const char*>(data) + token * dim * size_bytes;
  }
};

// The same tokens as int8 codes (int8.hpp), by the same row numbers.
struct TokenCodes {
  const std::int8_t* codes = nullptr;  // (num_tokens, int8_stride(dim)); null where there are none
  const float* scales = nullptr;
  const std::int32_t* sums = nullptr;  // of each row's codes
};

// The tokens of one document or query.
struct TokenRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t size() const { return end - begin; }
};

// Matrices laid end to end: matrix i is tokens[offsets[i] : offsets[i + 1]]. offsets[0] may be above 0 (a slice).
struct RaggedView {
  TokenView tokens;
  const std::int64_t* offsets = nullptr;  // (size + 1,)
  std::int64_t size = 0;
  TokenCodes codes = {};

  // Checked at every use, so that offsets changed behind our back cannot make a kernel read outside the buffer.
  TokenRange range(std::int64_t i) const {
    const TokenRange r{offsets[i], offsets[i + 1]};
    if (r.begin < 0 || r.end < r.begin || r.end > tokens.num_tokens)
      throw std::invalid_argument("offsets[" + std::to_string(i) + "] = " + std::to_string(r.begin) + " and offsets[" +
                                  std::to_string(i + 1) + "] = " + std::to_string(r.end) +
                                  " do not ascend within 0 .. " + std::to_string(tokens.num_tokens));
    return r;
  }
};

// Where documents are that are kept in one or more chunks: document i is found by its chunk's first index.
class ChunkFirsts {
 public:
  struct Place {
    std::size_t chunk;
    std::int64_t inside;  // its index there
  };

  void append(std::int64_t num_documents) {
    first_.push_back(size_);
    size_ += num_documents;
  }

  std::int64_t size() const { return size_; }

  Place find(std::int64_t index) const {
    if (index < 0 || index >= size_)
      throw std::out_of_range("document index " + std::to_string(index) + " is outside 0 .. " +
                              std::to_string(size_ - 1));
    std::size_t low = 0, high = first_.size() - 1;  // the last chunk whose first index is <= index
    while (low < high) {
      const std::size_t middle = (low + high + 1) / 2;
      if (first_[middle] <= index)
        low = middle;
      else
        high = middle - 1;
    }
    return {low, index - first_[low]};
  }

 private:
  std::vector<std::int64_t> first_;
  std::int64_t size_ = 0;
};

class SmallDocuments;

// Documents kept in one or more chunks; or as small codes (codec.hpp); or both.
class DocumentsView {
 public:
  // `small` are the same documents where there are chunks, and the documents where there are none.
  explicit DocumentsView(std::vector<RaggedView> chunks, const SmallDocuments* small = nullptr)
      : chunks_(std::move(chunks)), small_(small) {
    for (const RaggedView& chunk : chunks_) {
      if (chunk.tokens.dim != chunks_.front().tokens.dim)
        throw std::invalid_argument("chunks have tokens of dim " + std::to_string(chunks_.front().tokens.dim) +
                                    " and " + std::to_string(chunk.tokens.dim));
      firsts_.append(chunk.size);
    }
  }

  struct Document {
    const RaggedView* chunk;  // null where there are codes alone
    TokenRange range;
    std::int64_t index;
  };

  const SmallDocuments* small() const { return small_; }
  bool is_coded_alone() const { return chunks_.empty() && small_ != nullptr; }
  std::int64_t size() const;
  std::int64_t dim() const;
  Document document(std::int64_t index) const;
  // Where its tokens begin and end among those of its chunk, or of its part where there are codes alone.
  const std::int64_t* offsets(std::int64_t index) const;
  const DiskReads& disk_reads() const { return disk_reads_; }

 private:
  std::vector<RaggedView> chunks_;
  ChunkFirsts firsts_;
  const SmallDocuments* small_;
  DiskReads disk_reads_;
};

}  // namespace lemur

// Tokens as small codes: the number of the nearest centroid, and for each component 1 to 4 bits.
//
// A token is taken to its direction, and that through a linear map T, after which errors of all components cost the
// scores of queries alike; query tokens go through the inverse of T transposed, so that products stay what they were.
// What is left beside its centroid there is, component by component, the nearest of a few levels times the token's own
// scale. Levels are those of least squares for a normal distribution (J. Max, IRE Transactions on Information Theory 6,
// 1960). All that a code stands for are whole numbers in units that the codec fixes, so that it is decoded to the same
// int8 row on every instruction set.
//
// A token is about length * unit * row, taken back by the inverse of T; see SmallBook in kernels/table.hpp.
#pragma once

#include <cstdint>
#include <vector>

#include "lemur/kernels/table.hpp"
#include "lemur/products.hpp"
#include "lemur/views.hpp"

namespace lemur {

class Codec {
 public:
  // Component k of a turned token is its inner product with row k of `token_map`, (dim, dim); of a query token with row
  // k of `query_map`, the inverse of the other transposed. Throws std::invalid_argument for other bits than 1 to 4, no
  // centroids or too many, or a unit that is not above 0.
  Codec(const float* centroids, std::int64_t num_centroids, const float* token_map, const float* query_map,
        std::int64_t dim, float unit, int bits);

  int bits() const { return book_.bits; }
  std::int64_t dim() const { return dim_; }
  std::int64_t num_bytes() const { return book_.num_bytes; }
  std::int64_t num_centroids() const { return book_.num_centroids; }
  std::int64_t stride() const { return book_.stride; }
  float unit() const { return unit_; }
  SmallBook book() const {  // points into this object
    SmallBook out = book_;
    out.centroids = centroids_.data();
    out.levels = levels_;
    return out;
  }

  // (num_rows, dim): tokens as they are turned, tokens turned back, and query tokens turned to match.
  void turn(const float* tokens, std::int64_t num_rows, float* out) const;
  void turn_back(const float* turned, std::int64_t num_rows, float* out) const;
  void turn_query(const float* tokens, std::int64_t num_rows, float* out) const;

  struct Out {
    std::uint8_t* codes;   // (num_tokens, num_bytes)
    std::int16_t* scales;  // (num_tokens,), at least 0
    float* lengths;        // (num_tokens,)
  };
  // Codes of tokens that have these centroids: the same alone or among others, and on every instruction set with fused
  // products and sums.
  void encode(const TokenView& tokens, const std::uint16_t* centroids, const Out& out, int num_threads) const;

 private:
  void encode_direction(const float* turned, std::uint16_t centroid, std::uint8_t* codes, std::int16_t* scale,
                        std::vector<float>& scratch) const;
  void write_code(int code, std::int64_t k, std::uint8_t* codes) const;

  SmallBook book_{};
  std::int64_t dim_;
  float unit_;
  Columns tokens_, back_, queries_;
  std::vector<std::int8_t> centroids_;
  alignas(16) std::int16_t levels_[16] = {};
};

// Documents as small codes, in parts that are laid end to end; all buffers are the caller's.
class SmallDocuments {
 public:
  struct Part {
    const std::uint8_t* codes;
    const std::uint16_t* centroids;
    const std::int16_t* scales;
    const float* lengths;  // null where all are 1
    std::int64_t num_tokens;
    const std::int64_t* offsets;  // (size + 1,)
    std::int64_t size;
  };
  struct Document {
    SmallCodes tokens;
    const float* lengths;
  };

  SmallDocuments(const Codec& codec, std::vector<Part> parts);

  const Codec& codec() const { return codec_; }
  std::int64_t size() const { return firsts_.size(); }
  Document document(std::int64_t index) const;
  const std::int64_t* offsets(std::int64_t index) const;  // of its tokens in its part: two

 private:
  const Codec& codec_;
  std::vector<Part> parts_;
  ChunkFirsts firsts_;
};

// Decodes one document after the other; scratch memory of one thread.
class SmallReader {
 public:
  SmallReader(const KernelTable& kernels, const SmallDocuments& documents) : kernels_(kernels), documents_(documents) {}

  // int8 rows of a document, until the next call. Throws std::invalid_argument for an id that is no centroid's. `next`
  // is fetched meanwhile.
  Int8Document int8_rows(const SmallDocuments::Document& document, const SmallDocuments::Document& next);

  // The same as float32, (num_rows, dim), as they are turned. Throws std::invalid_argument where the document has other
  // rows than that, as of offsets that changed behind our back.
  void float_rows(const SmallDocuments::Document& document, std::int64_t num_rows, float* out);

 private:
  const KernelTable& kernels_;
  const SmallDocuments& documents_;
  std::vector<std::int8_t> rows_;
  std::vector<std::int32_t> sums_;
  std::vector<float> scales_;
};

}  // namespace lemur

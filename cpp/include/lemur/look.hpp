// The second look at a shortlist: MaxSim with a centroid in the place of each document token.
//
// A document's vector is a smooth estimate of its score, and underrates documents that match a few rare tokens exactly.
// Centroids see single tokens. Every token of a document is represented by the number of its nearest centroid, two
// bytes. Once a query, the similarities of its tokens to all centroids become a table of bytes; from then on a
// document's token maxima are maxima over rows of that table, a load a token. What these maxima say, together with the
// estimate, ranks the shortlist, by weights learned on queries that the map has not seen.
#pragma once

#include <cstdint>
#include <vector>

#include "lemur/int8.hpp"
#include "lemur/kernels/table.hpp"
#include "lemur/read_ahead.hpp"
#include "lemur/views.hpp"

namespace lemur {

// Vectors of length 1 that document tokens are represented by, as int8 codes.
class Centroids {
 public:
  static constexpr std::int64_t kMost = 65536;  // that two bytes can number

  // Throws std::invalid_argument where there are none, or too many.
  Centroids(const float* rows, std::int64_t size, std::int64_t dim);

  std::int64_t size() const { return size_; }
  std::int64_t dim() const { return dim_; }

  // The centroid with the largest inner product with each token, the first among equals: the same on every instruction
  // set, since products of codes are exact.
  void nearest(const TokenView& tokens, std::uint16_t* out, int num_threads) const;

  struct Similarities {
    std::vector<std::uint8_t> bytes;    // a row of num_panels * 16 for each centroid: 255 is the length of the longest
                                        // token, 0 all that is not above 0
    std::vector<std::int32_t> nearest;  // centroid of each token, the first among equals
  };
  void compare(const float* tokens, std::int64_t num_tokens, Similarities& out) const;

 private:
  Int8Run run(std::int64_t first, std::int64_t count, const std::int64_t* offsets) const;

  std::int64_t size_, dim_;
  Int8Rows rows_;
};

// The centroids of a run of documents' tokens, and the documents of rare centroids.
class CentroidIds {
 public:
  static constexpr std::int64_t kMostListed = 1024;  // documents of a centroid; those of a common one tell little

  // ids[offsets[i] : offsets[i + 1]] are those of document i's tokens. Throws std::invalid_argument where offsets do
  // not ascend within the ids, or an id is not below num_centroids.
  CentroidIds(const std::uint16_t* ids, std::int64_t num_ids, const std::int64_t* offsets, std::int64_t size,
              std::int64_t num_centroids);

  struct Tokens {
    const std::uint16_t* begin;
    std::int64_t size;
  };
  struct Documents {
    const std::int32_t* begin;
    std::int64_t size;  // above kMostListed where they are not listed
  };

  std::int64_t size() const { return size_; }
  std::int64_t num_centroids() const { return static_cast<std::int64_t>(counts_.size()); }
  Tokens document(std::int64_t i) const;
  const std::int64_t* offsets(std::int64_t i) const { return offsets_ + i; }
  Documents of_centroid(std::int64_t centroid) const { return {listed_.data() + begins_[centroid], counts_[centroid]}; }

 private:
  const std::uint16_t* ids_;
  std::int64_t num_ids_;
  const std::int64_t* offsets_;
  std::int64_t size_;
  std::vector<std::int32_t> counts_, listed_;
  std::vector<std::int64_t> begins_;
};

// A small network over what is known of a document: features to `hidden` units, max(0, x), and one number.
struct LookWeights {
  const float* input = nullptr;   // (hidden, kFeatures)
  const float* bias = nullptr;    // (hidden,)
  const float* output = nullptr;  // (hidden,)
  std::int64_t hidden = 0;
};

// The documents to look at: those of largest estimate, best first, and others after them.
struct Shortlist {
  std::vector<std::int64_t> rows;
  std::int64_t num_estimated = 0;
};

class SecondLook {
 public:
  static constexpr std::int64_t kFeatures = 5;
  static constexpr std::int64_t kUsual = 500;

  // Throws std::invalid_argument where a part is of other centroids.
  SecondLook(const Centroids& centroids, std::vector<const CentroidIds*> parts);

  std::int64_t size() const { return firsts_.size(); }
  const Centroids& centroids() const { return centroids_; }

  // Adds documents of the rarest of the centroids that are nearest to the query's tokens, `most` at most: those that
  // match a rare token, whatever the estimate says of them. `excluded` (size(),) ones never, where it is not null.
  void add_rare(const Centroids::Similarities& query, std::int64_t most, const std::uint8_t* excluded,
                Shortlist& shortlist) const;

  // What is known of each document of a shortlist, (kFeatures, count):
  //
  // - the logarithm of its place by estimate, that after the last for documents without one;
  // - the sum of its token maxima;
  // - the same with each query token's maxima standardised, so that rare matches count more;
  // - the root of the sum of the squares of those above 0, so that sharp matches do;
  // - the logarithm of its number of tokens.
  //
  // All but the first are standardised too, by the mean and deviation of the first kUsual documents of the shortlist,
  // so that they mean the same whatever its length.
  void features(const Centroids::Similarities& query, const Shortlist& shortlist, std::vector<float>& out) const;

  // Scores of the network, one for each document of the shortlist: the same bits on every instruction set.
  void scores(const Centroids::Similarities& query, const Shortlist& shortlist, const LookWeights& weights,
              std::vector<float>& out) const;

 private:
  void ask_for(const std::vector<std::int64_t>& rows) const;

  const Centroids& centroids_;
  std::vector<const CentroidIds*> parts_;
  ChunkFirsts firsts_;
  DiskReads disk_reads_;
};

}  // namespace lemur

// Exact MaxSim of one query and one document: what scans and reranks are made of.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "lemur/codec.hpp"
#include "lemur/kernels/table.hpp"
#include "lemur/views.hpp"

namespace lemur {

constexpr float kNone = -std::numeric_limits<float>::infinity();  // the score of a document without tokens

// Throws std::invalid_argument where the dims differ.
void check_dim(std::int64_t query_dim, const DocumentsView& documents);

// Query tokens in panels of 16 (see kernels/table.hpp), the last one padded with zeros.
std::vector<float> pack(const float* tokens, std::int64_t num_tokens, std::int64_t dim);

struct PackedQuery {
  std::vector<float> panels;
  std::int64_t num_tokens = 0;
  std::int64_t num_panels() const { return panels_of(num_tokens); }
};

std::vector<PackedQuery> pack_queries(const RaggedView& queries);

// Query tokens as documents are kept: turned as their codes are, where there are codes alone.
class TurnedQueries {
 public:
  TurnedQueries(const RaggedView& queries, const Codec* codec);
  const RaggedView& view() const { return view_; }

 private:
  RaggedView view_;
  std::vector<float> turned_;
};
inline const Codec* turned_by(const DocumentsView& documents) {
  return documents.is_coded_alone() ? &documents.small()->codec() : nullptr;
}

// The sum of the maxima of a query's tokens, in float64 and rounded once. kNone where that is no number, as of tokens
// that are not: rankings are sorted, and what is no number has no place in an order.
float sum(const float* best, std::int64_t size);

// MaxSim of one document at a time; owns the scratch memory of one thread.
class Scorer {
 public:
  Scorer(const KernelTable& kernels, const DocumentsView& documents) : kernels_(kernels), documents_(documents) {
    if (documents.is_coded_alone()) reader_.emplace(kernels, *documents.small());
  }

  // The query is turned where documents are. `next` is what will be scored after this document, or the document itself:
  // its tokens are fetched meanwhile.
  float operator()(const PackedQuery& query, const DocumentsView::Document& document,
                   const DocumentsView::Document& next);

 private:
  const KernelTable& kernels_;
  const DocumentsView& documents_;
  std::optional<SmallReader> reader_;
  std::vector<float> best_;
  std::vector<float> widened_;
};

}  // namespace lemur

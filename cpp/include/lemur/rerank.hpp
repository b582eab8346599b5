// Rerank in two passes: int8 codes of the tokens choose who is worth an exact score, and exact MaxSim orders those.
#pragma once

#include <cstdint>

#include "lemur/views.hpp"

namespace lemur {

struct RerankResult {
  std::int64_t* documents;  // (num_queries, k): best first, the smaller document index first among equals
  float* scores;            // (num_queries, k): exact MaxSim
  std::int64_t* counts;     // (num_queries,): how many there are; candidates without tokens are left out
};

// The k candidates of highest exact score of each query. candidates[candidate_offsets[i] : candidate_offsets[i + 1]]
// are document indices of query i, best read in ascending order. Queries are float32. Documents whose chunk has no
// codes are all scored exactly.
//
// Codes say by how much two scores differ up to rounding, whose size shows in the documents scored both ways: in order
// of their coded scores, documents are scored exactly until the k-th best exact score is further above the next coded
// one than kMargin standard deviations of the difference (rerank.cpp).
void rerank(const RaggedView& queries, const DocumentsView& documents, const std::int64_t* candidates,
            const std::int64_t* candidate_offsets, std::int64_t k, const RerankResult& out, int num_threads);

}  // namespace lemur

// Exact MaxSim: score(Q, D) = sum over query tokens q of max over document tokens d of <q, d>, in float32 arithmetic
// with the last sum in float64. Tokens must be finite; a document without tokens scores -infinity. All functions throw
// std::invalid_argument where the dims of queries and documents differ.
#pragma once

#include <cstdint>
#include <vector>

#include "lemur/views.hpp"

namespace lemur {

enum class Precision { kFloat32, kInt8 };

// Where element (token, document) of a result lies.
struct MaximaLayout {
  float* data;
  std::int64_t token_stride, document_stride;
};

// out[i, l] = max over tokens d of document l of <x_i, d>; x is (num_x, dim). kInt8 rounds both sides to int8 codes
// (int8.hpp) and is exact from there: the same bits on every instruction set.
void token_maxima(const float* x, std::int64_t num_x, std::int64_t dim, const DocumentsView& documents,
                  const MaximaLayout& out, Precision precision, int num_threads);

// out[i, l] = MaxSim of query i and document l; out is (queries.size, documents.size()). Queries are float32.
void scores(const RaggedView& queries, const DocumentsView& documents, float* out, int num_threads);

// MaxSim of query i and each of its candidates; candidates[candidate_offsets[i] : candidate_offsets[i + 1]] are
// document indices of query i, and `out` has the shape of `candidates`. Throws std::out_of_range on an index outside
// the documents.
void candidate_scores(const RaggedView& queries, const DocumentsView& documents, const std::int64_t* candidates,
                      const std::int64_t* candidate_offsets, float* out, int num_threads);

// The positions of the k largest of values[0 .. size), best first, the earlier position first among equals.
// -infinity counts as absent, so fewer than k may come back.
std::vector<std::int64_t> top_k(const float* values, std::int64_t size, std::int64_t k);

}  // namespace lemur

// Fewer tokens of a document: like ones are merged into their mean.
//
// Tokens are compared by cosine distance. Ward's method joins clusters of them (J. Ward, Journal of the American
// Statistical Association 58, 1963), over the matrix of distances, by chains of nearest neighbours (F. Murtagh, The
// Computer Journal 26, 1983).
#pragma once

#include <cstdint>

#include "lemur/views.hpp"

namespace lemur {

struct Pooling {
  std::int64_t factor;            // of n tokens max(1, n / factor) are left
  std::int64_t protected_tokens;  // the first of each document, which are not counted and not merged
  std::int64_t piece;             // longer documents are pooled in pieces of this at most, each by itself
};

constexpr std::int64_t kMaxPoolingPiece = 2048;   // the matrix of its distances is of 32 MiB
constexpr std::int64_t kMaxPooledTokens = 65536;  // whose numbers fit in 16 bits

// How many tokens a document will have, at most: fewer where distances are equal.
std::int64_t most_pooled_tokens(std::int64_t num_tokens, const Pooling& pooling);

struct Pooled {
  float* tokens;          // (sum of most_pooled_tokens, dim): of each document from where those before could end
  std::int64_t* sizes;    // (num_documents,): how many there are
  std::uint16_t* groups;  // (num_tokens,): the number of each original token's pooled one, within its document
};

// Pools each document by itself, so that it has the same pooled tokens whatever comes with it. A pooled token has the
// direction of its members' mean, and the mean of their lengths; one of a single member is that token. Tokens within a
// hundredth of length 1 count as of length 1. Pooled tokens are in the order of their first members. Throws
// std::invalid_argument for a factor below 1, a negative number of protected tokens, a piece outside 1 ..
// kMaxPoolingPiece, or more than kMaxPooledTokens.
void pool(const RaggedView& documents, const Pooling& pooling, const Pooled& out, int num_threads);

}  // namespace lemur

#include "lemur/scorer.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "lemur/kernels/prefetch.hpp"

namespace lemur {
namespace {

// Rows at a time: a multiple of every kernel's tile, and few enough for the first-level cache once widened to float32.
constexpr std::int64_t kBlockRows = 12;

}  // namespace

void check_dim(std::int64_t query_dim, const DocumentsView& documents) {
  if (documents.size() > 0 && query_dim != documents.dim())
    throw std::invalid_argument("query has dim " + std::to_string(query_dim) + ", documents have dim " +
                                std::to_string(documents.dim()));
}

std::vector<float> pack(const float* tokens, std::int64_t num_tokens, std::int64_t dim) {
  std::vector<float> panels(static_cast<std::size_t>(panels_of(num_tokens) * dim * kPanelTokens), 0.0f);
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    float* panel = panels.data() + (t / kPanelTokens) * dim * kPanelTokens + t % kPanelTokens;
    for (std::int64_t k = 0; k < dim; ++k) panel[k * kPanelTokens] = tokens[t * dim + k];
  }
  return panels;
}

std::vector<PackedQuery> pack_queries(const RaggedView& queries) {
  std::vector<PackedQuery> packed(static_cast<std::size_t>(queries.size));
  for (std::int64_t i = 0; i < queries.size; ++i) {
    const TokenRange r = queries.range(i);
    packed[i] = {pack(static_cast<const float*>(queries.tokens.row(r.begin)), r.size(), queries.tokens.dim), r.size()};
  }
  return packed;
}

TurnedQueries::TurnedQueries(const RaggedView& queries, const Codec* codec) : view_(queries) {
  if (codec == nullptr || queries.tokens.dim != codec->dim()) return;  // which check_dim refuses
  turned_.resize(static_cast<std::size_t>(queries.tokens.num_tokens * codec->dim()));
  codec->turn_query(static_cast<const float*>(queries.tokens.data), queries.tokens.num_tokens, turned_.data());
  view_.tokens.data = turned_.data();
}

float sum(const float* best, std::int64_t size) {
  double total = 0.0;
  for (std::int64_t t = 0; t < size; ++t) total += best[t];
  return total == total ? static_cast<float>(total) : kNone;
}

float Scorer::operator()(const PackedQuery& query, const DocumentsView::Document& document,
                         const DocumentsView::Document& next) {
  best_.assign(static_cast<std::size_t>(query.num_panels() * kPanelTokens), kNone);
  if (document.chunk == nullptr) {
    const std::int64_t rows = document.range.size(), dim = documents_.dim();
    widened_.resize(static_cast<std::size_t>(rows * dim));
    reader_->float_rows(documents_.small()->document(document.index), rows, widened_.data());
    kernels_.update_maxima(query.panels.data(), query.num_panels(), widened_.data(), rows, dim, best_.data());
    return sum(best_.data(), query.num_tokens);
  }
  const TokenView& tokens = document.chunk->tokens;
  const TokenRange range = document.range;
  const bool half = tokens.type == TokenType::kFloat16;
  if (half) widened_.resize(static_cast<std::size_t>(kBlockRows * tokens.dim));
  const char* ahead = static_cast<const char*>(next.chunk->tokens.row(next.range.begin));
  const char* const ahead_end = static_cast<const char*>(next.chunk->tokens.row(next.range.end));
  for (std::int64_t begin = range.begin; begin < range.end; begin += kBlockRows) {
    // The last block begins early enough to be whole where it can: a row seen twice changes no maximum.
    const std::int64_t first = std::max(range.begin, std::min(begin, range.end - kBlockRows));
    const std::int64_t rows = std::min(kBlockRows, range.end - first);
    const char* const data = static_cast<const char*>(tokens.row(first));
    const char* const end = static_cast<const char*>(tokens.row(first + rows));
    // As many bytes ahead as are read now: to ask for all at once would wait for memory.
    for (const char* p = data; p < end && ahead < ahead_end; p += kCacheLine, ahead += kCacheLine) prefetch(ahead);
    const float* floats = reinterpret_cast<const float*>(data);
    if (half) {
      kernels_.widen(reinterpret_cast<const std::uint16_t*>(data), rows * tokens.dim, widened_.data());
      floats = widened_.data();
    }
    kernels_.update_maxima(query.panels.data(), query.num_panels(), floats, rows, tokens.dim, best_.data());
  }
  return sum(best_.data(), query.num_tokens);
}

}  // namespace lemur

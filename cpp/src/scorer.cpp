#include "lemur/scorer.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace lemur {
namespace {

// Widened half-precision tokens of this many rows at a time stay in the second-level cache.
constexpr std::int64_t kWidenRows = 96;

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

float sum(const float* best, std::int64_t size) {
  double total = 0.0;
  for (std::int64_t t = 0; t < size; ++t) total += best[t];
  return static_cast<float>(total);
}

float Scorer::operator()(const PackedQuery& query, const DocumentsView::Document& document) {
  best_.assign(static_cast<std::size_t>(query.num_panels() * kPanelTokens), kNone);
  const TokenView& tokens = document.chunk->tokens;
  const TokenRange range = document.range;
  const auto update = [&](const float* rows, std::int64_t num_rows) {
    kernels_.update_maxima(query.panels.data(), query.num_panels(), rows, num_rows, tokens.dim, best_.data());
  };
  if (tokens.type == TokenType::kFloat32) {
    update(static_cast<const float*>(tokens.row(range.begin)), range.size());
  } else {
    widened_.resize(static_cast<std::size_t>(kWidenRows * tokens.dim));
    for (std::int64_t begin = range.begin; begin < range.end; begin += kWidenRows) {
      const std::int64_t rows = std::min(kWidenRows, range.end - begin);
      kernels_.widen(static_cast<const std::uint16_t*>(tokens.row(begin)), rows * tokens.dim, widened_.data());
      update(widened_.data(), rows);
    }
  }
  return sum(best_.data(), query.num_tokens);
}

}  // namespace lemur

// Candidates: the rows of largest inner product with a query, found by best-first search of a neighbourhood graph.
//
// Vectors are kept as int8 codes (int8.hpp), a quarter of the memory that the search has to read; candidates are ranked
// by exact scores afterwards. The graph covers the first rows: those that came since are scanned. Where most rows are
// excluded, those that are not are scanned.
#pragma once

#include <cstdint>

namespace lemur {

// Row r is about codes[r * stride + k] * scales[r] for k < dim; codes from dim on are 0.
struct CodedVectors {
  const std::int8_t* codes = nullptr;
  const float* scales = nullptr;
  std::int64_t size = 0;
  std::int64_t dim = 0;
  std::int64_t stride = 0;
};

struct Graph {
  const std::int32_t* links = nullptr;  // (num_nodes, degree): neighbours, -1 after the last
  std::int64_t num_nodes = 0;
  std::int64_t degree = 0;
  const std::int32_t* entries = nullptr;  // where searches may begin: all are looked at
  std::int64_t num_entries = 0;
  // (num_nodes,): the next row with the same codes, -1 where there is none; or null, where no two have the same. Of
  // such rows the first alone is linked to, and stands for all: else they would fill each other's links, and a search's
  // view.
  const std::int32_t* next_equal = nullptr;
};

struct CandidateSearch {
  CodedVectors nodes;   // of the graph: as many as it has
  CodedVectors recent;  // the rows after them, which have no links
  Graph graph;
  const std::uint8_t* excluded = nullptr;  // (size(),): rows to pass through but never return where not 0; or null
  std::int64_t num_excluded = 0;
  std::int64_t num_candidates = 0;
  // Rows the search keeps in view, excluded ones and equal ones left out of the count. Where fewer than num_candidates,
  // the others are the best of all rows that were looked at on the way.
  std::int64_t beam = 0;

  // For each query, (num_queries, dim) float32, its best rows, best first: exactly min(num_candidates, rows that are
  // not excluded) of them each. Throws std::invalid_argument where a link or an entry is not a node, or next_equal does
  // not ascend.
  void run(const float* queries, std::int64_t num_queries, std::int64_t* out, int num_threads) const;

  std::int64_t size() const { return nodes.size + recent.size; }
  std::int64_t num_found() const;
};

}  // namespace lemur

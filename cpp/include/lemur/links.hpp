// Links between vectors, better than those of a graph there is, or of vectors that join it.
//
// A graph that HNSW made knows most of a node's neighbours, but keeps few of them. One pass of the construction of
// Vamana over it (Subramanya et al., DiskANN, NeurIPS 2019) finds more: a search for the node's own vector gives
// candidates. Of these, nearest first, a link is made to each one that is nearer to the node than to any neighbour
// chosen before, and then, while there is room, to each one that is so but for a factor alpha. Then each is linked
// back. Distances are those of the codes, so that all instruction sets of a processor make the same links. Of rows with
// the same codes, which the graph lists, the first alone has links.
//
// Vectors that join get theirs in the same way, block by block: a walk over the links of those before gives
// candidates, and all others of the block are candidates too.
#pragma once

#include <cstdint>

#include "lemur/graph.hpp"

namespace lemur {

struct LinkChoice {
  CodedVectors vectors;
  // Over all of them; or over the first, which then keep their links, but for links to those that join. next_equal,
  // where it is not null, lists all of them.
  Graph graph;
  std::int64_t degree = 0;  // most links of a node; at least graph.degree where vectors join
  std::int64_t beam = 0;    // of the searches, and so the candidates of a node
  float alpha = 1;          // of squared distances, at least 1: more makes more and longer links

  // Writes links (vectors.size, degree), -1 after the last of each. The same whatever the number of threads. Throws
  // std::invalid_argument where a link or an entry is not a node, or the graph's next_equal does not ascend.
  void run(std::int32_t* links, int num_threads) const;
};

}  // namespace lemur

#include "lemur/links.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <vector>

#include "lemur/cpu.hpp"
#include "lemur/parallel.hpp"

namespace lemur {
namespace {

constexpr std::int64_t kNodesPerTask = 64;  // so many searches share the scratch memory that one call sets up
// Added at once: a share of those there are, so that what is done once for all of a block does not count for much.
constexpr std::int64_t kNodesPerBlock = 256, kShareOfBlock = 1024;

struct Candidate {
  float distance;  // squared, from the node whose links are chosen
  std::int32_t node;
  // The largest factor, of squared distances, by which a chosen neighbour is nearer to it than the node is. Above 1, a
  // walk can come to it by way of that neighbour. It only grows: what is beyond alpha once can be dropped.
  float shadow;
};

bool nearer(const Candidate& a, const Candidate& b) {
  return a.distance < b.distance || (a.distance == b.distance && a.node < b.node);
}

// Chooses a node's links among candidates; one thread's, with its scratch memory.
class Chooser {
 public:
  Chooser(const LinkChoice& choice, const std::vector<float>& squares)
      : choice_(choice), squares_(squares), kernels_(active_kernels()) {}

  // Sorts `candidates`, which may hold the node itself and repeat others, and writes its links.
  void operator()(std::int32_t node, std::vector<std::int32_t>& candidates, std::int32_t* links) {
    std::sort(candidates.begin(), candidates.end());
    candidates.erase(std::unique(candidates.begin(), candidates.end()), candidates.end());
    candidates.erase(std::remove(candidates.begin(), candidates.end(), node), candidates.end());
    distances(node, candidates);
    near_.clear();
    for (std::size_t i = 0; i < candidates.size(); ++i) near_.push_back({distances_[i], candidates[i], 0});
    std::sort(near_.begin(), near_.end(), nearer);
    std::int64_t count = 0;
    // First those that nobody shadows at all, which lead furthest; then, where there is room, the others.
    for (const float most : {1.0F, choice_.alpha})
      for (std::size_t i = 0; i < near_.size() && count < choice_.degree; ++i) {
        if (near_[i].shadow > most) continue;
        const std::int32_t chosen = near_[i].node;
        links[count++] = chosen;
        near_.erase(near_.begin() + static_cast<std::ptrdiff_t>(i--));
        cast_shadow(chosen, static_cast<std::size_t>(i + 1));
      }
    std::fill(links + count, links + choice_.degree, -1);
  }

 private:
  // Of a chosen neighbour, on the candidates that are further from the node: those before `begin` are nearer than the
  // neighbour, and stay as they are. A candidate with the neighbour's own codes, at distance 0, is dropped. The order
  // is kept.
  void cast_shadow(std::int32_t chosen, std::size_t begin) {
    rest_.clear();
    for (std::size_t i = begin; i < near_.size(); ++i) rest_.push_back(near_[i].node);
    distances(chosen, rest_);
    std::size_t kept = begin;
    for (std::size_t i = begin; i < near_.size(); ++i) {
      const float distance = distances_[i - begin];
      near_[i].shadow = std::max(near_[i].shadow, distance > 0 ? near_[i].distance / distance : 2 * choice_.alpha);
      if (near_[i].shadow <= choice_.alpha) near_[kept++] = near_[i];
    }
    near_.resize(kept);
  }

  // Of the node to each of others.
  void distances(std::int32_t node, const std::vector<std::int32_t>& others) {
    const CodedVectors& vectors = choice_.vectors;
    const auto count = static_cast<std::int64_t>(others.size());
    products_.resize(others.size());
    distances_.resize(others.size());
    kernels_.int8_dots(vectors.codes + node * vectors.stride, vectors.codes, vectors.stride, others.data(), count,
                       products_.data());
    for (std::int64_t i = 0; i < count; ++i) {
      const float product = static_cast<float>(products_[i]) * vectors.scales[node] * vectors.scales[others[i]];
      const float distance = squares_[node] + squares_[others[i]] - 2 * product;
      // Vectors so long that their squares are infinite may have a difference that is no number, which no sort takes.
      distances_[i] = distance == distance ? distance : std::numeric_limits<float>::max();
    }
  }

  const LinkChoice& choice_;
  const std::vector<float>& squares_;
  const KernelTable& kernels_;
  std::vector<Candidate> near_;
  std::vector<std::int32_t> rest_;
  std::vector<std::int32_t> products_;
  std::vector<float> distances_;
};

std::int64_t num_links(const std::int32_t* links, std::int64_t degree) {
  return std::find(links, links + degree, -1) - links;
}

std::vector<float> squared_lengths(const CodedVectors& vectors) {
  const KernelTable& kernels = active_kernels();
  std::vector<float> squares(static_cast<std::size_t>(vectors.size));
  for (std::int64_t node = 0; node < vectors.size; ++node) {
    const std::int8_t* codes = vectors.codes + node * vectors.stride;
    std::int32_t product = 0;
    kernels.int8_dots(codes, codes, vectors.stride, nullptr, 1, &product);
    squares[node] = static_cast<float>(product) * vectors.scales[node] * vectors.scales[node];
  }
  return squares;
}

// Which rows another one with the same codes stands for, 1 each: they have no links.
std::vector<std::uint8_t> stood_for(const std::int32_t* next_equal, std::int64_t size) {
  std::vector<std::uint8_t> rows(static_cast<std::size_t>(size), 0);
  if (next_equal == nullptr) return rows;
  for (std::int64_t row = 0; row < size; ++row) {
    const std::int64_t next = next_equal[row];
    if (next >= size || (next >= 0 && next <= row))
      throw std::invalid_argument("rows with the same codes do not ascend within the graph");
    if (next >= 0) rows[next] = 1;
  }
  return rows;
}

// What is near a node: what a walk of the graph finds, and, of a block of nodes that have no links yet, a scan.
struct Near {
  CandidateSearch walk, scan;

  Near(const LinkChoice& choice, const Graph& graph, const std::vector<std::uint8_t>& has_none, std::int64_t end) {
    const CodedVectors& vectors = choice.vectors;
    const std::int64_t begin = graph.num_nodes;
    const auto none_of = [&](std::int64_t from, std::int64_t to) {
      return std::count(has_none.begin() + from, has_none.begin() + to, 1);
    };
    walk.nodes = {vectors.codes, vectors.scales, begin, vectors.dim, vectors.stride};
    walk.graph = graph;
    walk.graph.next_equal = nullptr;
    walk.excluded = has_none.data();
    walk.num_excluded = none_of(0, begin);
    walk.num_candidates = walk.beam = std::min(choice.beam, begin);
    scan.nodes = {nullptr, nullptr, 0, vectors.dim, vectors.stride};
    scan.recent = {vectors.codes + begin * vectors.stride, vectors.scales + begin, end - begin, vectors.dim,
                   vectors.stride};
    scan.excluded = has_none.data() + begin;
    scan.num_excluded = none_of(begin, end);
    scan.num_candidates = scan.beam = std::min(choice.beam, end - begin);
  }
};

// Links of the nodes from `begin` to `end`, among those they have in the graph and what is near each. The graph has all
// of these nodes, or none: then they are linked to each other too.
void choose_links(const LinkChoice& choice, const Graph& graph, const std::vector<std::uint8_t>& has_none,
                  const std::vector<float>& squares, std::int64_t begin, std::int64_t end, std::int32_t* links,
                  int num_threads) {
  const CodedVectors& vectors = choice.vectors;
  const Near near(choice, graph, has_none, end);
  const std::int64_t walked = near.walk.num_found(), scanned = near.scan.num_found();
  parallel_for((end - begin + kNodesPerTask - 1) / kNodesPerTask, num_threads, [&] {
    return [&, choose = Chooser(choice, squares), queries = std::vector<float>(), found = std::vector<std::int64_t>(),
            others = std::vector<std::int64_t>(), candidates = std::vector<std::int32_t>()](std::int64_t task) mutable {
      const std::int64_t first = begin + task * kNodesPerTask, last = std::min(first + kNodesPerTask, end);
      queries.clear();
      for (std::int64_t node = first; node < last; ++node)
        if (has_none[node] == 0)  // an own code is its own query: the scale does not matter
          queries.insert(queries.end(), vectors.codes + node * vectors.stride,
                         vectors.codes + node * vectors.stride + vectors.dim);
      const std::int64_t asked = static_cast<std::int64_t>(queries.size()) / vectors.dim;
      found.resize(static_cast<std::size_t>(asked * walked));
      others.resize(static_cast<std::size_t>(asked * scanned));
      near.walk.run(queries.data(), asked, found.data(), 1);
      near.scan.run(queries.data(), asked, others.data(), 1);
      std::int64_t i = 0;
      for (std::int64_t node = first; node < last; ++node) {
        std::int32_t* own = links + node * choice.degree;
        if (has_none[node] != 0) {
          std::fill_n(own, choice.degree, -1);
          continue;
        }
        candidates.clear();
        if (node < graph.num_nodes) {
          const std::int32_t* known = graph.links + node * graph.degree;
          candidates.assign(known, known + num_links(known, graph.degree));
        }
        candidates.insert(candidates.end(), found.begin() + i * walked, found.begin() + (i + 1) * walked);
        for (std::int64_t other = i * scanned; other < (i + 1) * scanned; ++other)
          candidates.push_back(static_cast<std::int32_t>(graph.num_nodes + others[other]));
        choose(static_cast<std::int32_t>(node), candidates, own);
        ++i;
      }
    };
  });
}

// Who of the nodes from `first` to `size` links to whom: those that link to node n are nodes[ends[n] .. ends[n + 1]),
// ascending.
struct Linking {
  std::vector<std::int64_t> ends;
  std::vector<std::int32_t> nodes;
};

// Sorted by counting.
Linking linking_nodes(std::int64_t degree, std::int64_t first, std::int64_t size, const std::int32_t* links) {
  const std::int64_t begin = first * degree, end = size * degree;
  Linking linking{std::vector<std::int64_t>(static_cast<std::size_t>(size + 1), 0), {}};
  for (std::int64_t i = begin; i < end; ++i)
    if (links[i] >= 0) ++linking.ends[links[i] + 1];
  for (std::int64_t node = 0; node < size; ++node) linking.ends[node + 1] += linking.ends[node];
  linking.nodes.resize(static_cast<std::size_t>(linking.ends[size]));
  std::vector<std::int64_t> next(linking.ends.begin(), linking.ends.end() - 1);
  for (std::int64_t i = begin; i < end; ++i)
    if (links[i] >= 0) linking.nodes[next[links[i]]++] = static_cast<std::int32_t>(i / degree);
  return linking;
}

// Links each node back to those that link to it, and chooses anew where these are too many. Who links to whom was
// listed before, so that a task reads and writes its own nodes' links alone: the same whatever the threads.
void link_back(const LinkChoice& choice, const std::vector<float>& squares, const Linking& linking, std::int32_t* links,
               int num_threads) {
  const std::int64_t size = static_cast<std::int64_t>(linking.ends.size()) - 1, degree = choice.degree;
  parallel_for((size + kNodesPerTask - 1) / kNodesPerTask, num_threads, [&] {
    return [&, choose = Chooser(choice, squares), all = std::vector<std::int32_t>()](std::int64_t task) mutable {
      for (std::int64_t node = task * kNodesPerTask; node < std::min((task + 1) * kNodesPerTask, size); ++node) {
        const std::int64_t begin = linking.ends[node], end = linking.ends[node + 1];
        if (begin == end) continue;
        std::int32_t* own = links + node * degree;
        const std::int64_t count = num_links(own, degree);
        all.assign(own, own + count);
        for (std::int64_t i = begin; i < end; ++i)
          if (std::find(own, own + count, linking.nodes[i]) == own + count) all.push_back(linking.nodes[i]);
        if (static_cast<std::int64_t>(all.size()) > degree)
          choose(static_cast<std::int32_t>(node), all, own);
        else
          std::copy(all.begin() + count, all.end(), own + count);
      }
    };
  });
}

}  // namespace

void LinkChoice::run(std::int32_t* links, int num_threads) const {
  const std::int64_t known = graph.num_nodes, size = vectors.size;
  for (std::int64_t i = 0; i < known * graph.degree; ++i)
    if (graph.links[i] < -1 || graph.links[i] >= known)
      throw std::invalid_argument("a link of the graph is not a node");
  const std::vector<float> squares = squared_lengths(vectors);
  const std::vector<std::uint8_t> has_none = stood_for(graph.next_equal, size);
  if (known == size) {
    choose_links(*this, graph, has_none, squares, 0, size, links, num_threads);
    link_back(*this, squares, linking_nodes(degree, 0, size, links), links, num_threads);
    return;
  }
  for (std::int64_t node = 0; node < known; ++node) {
    const std::int32_t* own = graph.links + node * graph.degree;
    std::fill(std::copy(own, own + graph.degree, links + node * degree), links + (node + 1) * degree, -1);
  }
  Graph grown = graph;
  grown.links = links;
  grown.degree = degree;
  while (grown.num_nodes < size) {
    const std::int64_t begin = grown.num_nodes;
    const std::int64_t end = std::min(size, begin + std::max(kNodesPerBlock, begin / kShareOfBlock));
    choose_links(*this, grown, has_none, squares, begin, end, links, num_threads);
    link_back(*this, squares, linking_nodes(degree, begin, end, links), links, num_threads);
    grown.num_nodes = end;
  }
}

}  // namespace lemur

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

struct Near {
  float distance;  // squared, from the node whose links are chosen
  std::int32_t node;
  // The largest factor, of squared distances, by which a chosen neighbour is nearer to it than the node is. Above 1, a
  // walk can come to it by way of that neighbour. It only grows: what is beyond alpha once can be dropped.
  float shadow;
};

bool nearer(const Near& a, const Near& b) {
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
  std::vector<Near> near_;
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

// Links of the nodes before `first`, as they are.
void keep_links(const LinkChoice& choice, std::int32_t* links) {
  const Graph& graph = choice.graph;
  for (std::int64_t node = 0; node < choice.first; ++node) {
    const std::int32_t* known = graph.links + node * graph.degree;
    std::fill(std::copy(known, known + std::min(graph.degree, choice.degree), links + node * choice.degree),
              links + (node + 1) * choice.degree, -1);
  }
}

// Which rows another one with the same codes stands for, 1 each: they have no links.
std::vector<std::uint8_t> stood_for(const Graph& graph) {
  std::vector<std::uint8_t> rows(static_cast<std::size_t>(graph.num_nodes), 0);
  if (graph.next_equal == nullptr) return rows;
  for (std::int64_t row = 0; row < graph.num_nodes; ++row) {
    const std::int64_t next = graph.next_equal[row];
    if (next >= graph.num_nodes || (next >= 0 && next <= row))
      throw std::invalid_argument("rows with the same codes do not ascend within the graph");
    if (next >= 0) rows[next] = 1;
  }
  return rows;
}

// Links of the nodes from `first` on, among those they have and what a search finds near each.
void choose_links(const LinkChoice& choice, const std::vector<float>& squares, std::int32_t* links, int num_threads) {
  const CodedVectors& vectors = choice.vectors;
  const Graph& graph = choice.graph;
  CandidateSearch search;
  search.nodes = vectors;
  search.graph = graph;
  search.graph.next_equal = nullptr;
  const std::vector<std::uint8_t> has_none = stood_for(graph);
  search.excluded = has_none.data();
  search.num_excluded = std::count(has_none.begin(), has_none.end(), 1);
  search.num_candidates = search.beam = std::min(choice.beam, vectors.size);
  const std::int64_t found = search.num_found();
  parallel_for((vectors.size - choice.first + kNodesPerTask - 1) / kNodesPerTask, num_threads, [&] {
    return [&, choose = Chooser(choice, squares), queries = std::vector<float>(), near = std::vector<std::int64_t>(),
            candidates = std::vector<std::int32_t>()](std::int64_t task) mutable {
      const std::int64_t begin = choice.first + task * kNodesPerTask;
      const std::int64_t end = std::min(begin + kNodesPerTask, vectors.size);
      queries.clear();
      for (std::int64_t node = begin; node < end; ++node)
        if (has_none[node] == 0)  // an own code is its own query: the scale does not matter
          queries.insert(queries.end(), vectors.codes + node * vectors.stride,
                         vectors.codes + node * vectors.stride + vectors.dim);
      const std::int64_t asked = static_cast<std::int64_t>(queries.size()) / vectors.dim;
      near.resize(static_cast<std::size_t>(asked * found));
      search.run(queries.data(), asked, near.data(), 1);
      const std::int64_t* own = near.data();
      for (std::int64_t node = begin; node < end; ++node) {
        if (has_none[node] != 0) {
          std::fill_n(links + node * choice.degree, choice.degree, -1);
          continue;
        }
        const std::int32_t* known = graph.links + node * graph.degree;
        candidates.assign(known, known + num_links(known, graph.degree));
        candidates.insert(candidates.end(), own, own + found);
        choose(static_cast<std::int32_t>(node), candidates, links + node * choice.degree);
        own += found;
      }
    };
  });
}

// Who of the nodes from `first` on links to whom: those that link to node n are nodes[ends[n] .. ends[n + 1]),
// ascending.
struct Linking {
  std::vector<std::int64_t> ends;
  std::vector<std::int32_t> nodes;
};

// Sorted by counting.
Linking linking_nodes(const LinkChoice& choice, const std::int32_t* links) {
  const std::int64_t size = choice.vectors.size, begin = choice.first * choice.degree, end = size * choice.degree;
  Linking linking{std::vector<std::int64_t>(static_cast<std::size_t>(size + 1), 0), {}};
  for (std::int64_t i = begin; i < end; ++i)
    if (links[i] >= 0) ++linking.ends[links[i] + 1];
  for (std::int64_t node = 0; node < size; ++node) linking.ends[node + 1] += linking.ends[node];
  linking.nodes.resize(static_cast<std::size_t>(linking.ends[size]));
  std::vector<std::int64_t> next(linking.ends.begin(), linking.ends.end() - 1);
  for (std::int64_t i = begin; i < end; ++i)
    if (links[i] >= 0) linking.nodes[next[links[i]]++] = static_cast<std::int32_t>(i / choice.degree);
  return linking;
}

// Links each node back to those that link to it, and chooses anew where these are too many. Who links to whom was
// listed before, so that a task reads and writes its own nodes' links alone: the same whatever the threads.
void link_back(const LinkChoice& choice, const std::vector<float>& squares, const Linking& linking, std::int32_t* links,
               int num_threads) {
  const std::int64_t size = choice.vectors.size, degree = choice.degree;
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
  for (std::int64_t i = 0; i < vectors.size * graph.degree; ++i)
    if (graph.links[i] < -1 || graph.links[i] >= vectors.size)
      throw std::invalid_argument("a link of the graph is not a node");
  const std::vector<float> squares = squared_lengths(vectors);
  choose_links(*this, squares, links, num_threads);
  keep_links(*this, links);
  link_back(*this, squares, linking_nodes(*this, links), links, num_threads);
}

}  // namespace lemur

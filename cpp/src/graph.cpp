#include "lemur/graph.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "lemur/cpu.hpp"
#include "lemur/int8.hpp"
#include "lemur/kernels/prefetch.hpp"
#include "lemur/parallel.hpp"
#include "lemur/scored.hpp"

namespace lemur {
namespace {

constexpr std::int64_t kRowsPerScan = 256;   // products at a time, in a scan
constexpr std::int64_t kRowsPerGather = 16;  // in a scan of chosen rows, while the next are fetched
// A search looks at about so many rows for each place of its beam, at a random place of memory each; where that is more
// than a scan of all that may be found would cost, that is scanned.
constexpr std::int64_t kRowsPerPlace = 16;

// A scan keeps so many rows sorted as it goes. An insert moves all that it comes before, so more than that are
// collected and sorted at the end.
constexpr std::int64_t kMaxInserted = 1024;

// The rows that are not excluded, where these are few enough to be worth a list.
struct Chosen {
  explicit Chosen(const CandidateSearch& search) {
    const std::int64_t left = search.size() - search.num_excluded;
    listed = search.excluded != nullptr && 2 * left < search.size();
    if (!listed) return;
    for (std::int64_t row = 0; row < search.nodes.size; ++row)
      if (search.excluded[row] == 0) nodes.push_back(static_cast<std::int32_t>(row));
    for (std::int64_t row = 0; row < search.recent.size; ++row)
      if (search.excluded[search.nodes.size + row] == 0) recent.push_back(static_cast<std::int32_t>(row));
  }
  bool listed = false;
  std::vector<std::int32_t> nodes;
  std::vector<std::int32_t> recent;
};

// A row in view.
struct Place : Scored<std::int32_t> {
  bool expanded;  // whether its neighbours were looked at
};

// The best rows so far, sorted, at most `capacity`. A vector and not a heap, since a walk goes by their order.
class Best {
 public:
  void start(std::int64_t capacity) {
    capacity_ = capacity;
    rows_.clear();
    rows_.reserve(static_cast<std::size_t>(capacity + 1));
  }

  bool full() const { return static_cast<std::int64_t>(rows_.size()) == capacity_; }
  bool admits(const Place& item) const { return !full() || Better()(item, rows_.back()); }

  // For many rows in any order, to be sorted once by `settle`. Up to twice `capacity` are kept meanwhile, so that what
  // drops half of them, in linear time, is rare.
  void collect(const Place& item) {
    rows_.push_back(item);
    if (static_cast<std::int64_t>(rows_.size()) >= 2 * capacity_) keep();
  }
  void settle() {
    keep();
    std::sort(rows_.begin(), rows_.end(), Better());
  }

  // Where it came to stand. For what is admitted.
  std::int64_t insert(const Place& item) {
    if (full()) rows_.pop_back();
    const auto place = std::upper_bound(rows_.begin(), rows_.end(), item, Better());
    return rows_.insert(place, item) - rows_.begin();
  }

  std::vector<Place>& rows() { return rows_; }

 private:
  void keep() {
    if (static_cast<std::int64_t>(rows_.size()) <= capacity_) return;
    std::nth_element(rows_.begin(), rows_.begin() + capacity_, rows_.end(), Better());
    rows_.resize(static_cast<std::size_t>(capacity_));
  }

  std::int64_t capacity_ = 0;
  std::vector<Place> rows_;
};

// One thread's search; owns its scratch memory.
class Searcher {
 public:
  Searcher(const CandidateSearch& search, const Chosen& chosen)
      : search_(search),
        chosen_(chosen),
        kernels_(active_kernels()),
        code_(static_cast<std::size_t>(search.nodes.stride), 0),
        visited_(static_cast<std::size_t>(search.graph.num_nodes / 64 + 1), 0),
        products_(static_cast<std::size_t>(std::max({kRowsPerScan, search.graph.degree, search.graph.num_entries}))),
        fresh_(static_cast<std::size_t>(search.graph.degree)) {}

  void operator()(const float* query, std::int64_t* out) {
    quantise(query, search_.nodes.dim, code_.data());  // its scale is positive, and so of no matter to any order
    const std::int64_t rows = search_.size(), wanted = search_.num_found(), left = rows - search_.num_excluded;
    const std::int64_t scannable =
        chosen_.listed ? static_cast<std::int64_t>(chosen_.nodes.size()) : search_.nodes.size;
    // Excluded rows take places of the beam, so it is wider where there are many, and widened while too few are found.
    // At last it is so wide that a scan is cheaper, and a scan finds them all.
    double share = left > 0 ? static_cast<double>(rows) / static_cast<double>(left) : 1.0;
    for (;; share *= 2) {
      const auto beam =
          static_cast<std::int64_t>(std::min(static_cast<double>(search_.beam) * share, static_cast<double>(rows)));
      const bool walks = beam * kRowsPerPlace < scannable;
      keeps_seen_ = walks && beam < wanted;
      best_.start(walks ? beam : wanted);
      const bool stand_for_equals = walks && search_.graph.next_equal != nullptr;
      collects_ = !walks && wanted > kMaxInserted;
      if (walks)
        walk();
      else
        scan(search_.nodes, 0, chosen_.nodes);
      scan(search_.recent, search_.nodes.size, chosen_.recent);
      if (keeps_seen_) choose_of_seen(wanted, stand_for_equals);
      if (collects_) best_.settle();
      std::int64_t found = 0;
      for (const Place& item : best_.rows()) {
        if (found == wanted) break;
        if (!excluded(item.index)) out[found++] = item.index;
        if (!stand_for_equals || item.index >= search_.nodes.size) continue;
        for (std::int64_t row = next_equal(item.index); row >= 0 && found < wanted; row = next_equal(row))
          if (!excluded(row)) out[found++] = row;
      }
      if (found == wanted) return;
      if (!walks) throw std::invalid_argument("num_excluded is not the number of excluded rows");
    }
  }

 private:
  bool excluded(std::int64_t row) const { return search_.excluded != nullptr && search_.excluded[row] != 0; }

  std::int64_t next_equal(std::int64_t row) const {
    const std::int64_t next = search_.graph.next_equal[row];
    if (next >= search_.nodes.size || (next >= 0 && next <= row))
      throw std::invalid_argument("rows with the same codes do not ascend within the graph");
    return next;
  }

  float score(std::int64_t row, std::int32_t product) const {
    return static_cast<float>(product) * search_.nodes.scales[row];
  }

  // Whether it was not visited before. One bit a node: for a million nodes 122 KiB, which stay in the second-level
  // cache.
  bool visit(std::int32_t node) {
    std::uint64_t& word = visited_[static_cast<std::size_t>(node) / 64];
    const std::uint64_t bit = std::uint64_t{1} << (node % 64);
    const bool seen = (word & bit) != 0;
    word |= bit;
    return !seen;
  }

  void see(const Place& item) {
    if (keeps_seen_) seen_.push_back(key(item));
  }

  // A number that is the smaller the better the place: sorting those is quicker.
  static std::uint64_t key(const Place& item) {
    std::uint32_t bits;
    std::memcpy(&bits, &item.score, sizeof bits);
    if (item.score == 0.0f) bits = 0;  // either zero
    const std::uint32_t ascending = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
    return std::uint64_t{~ascending} << 32 | static_cast<std::uint32_t>(item.index);
  }

  // The best of all that was looked at, in the place of the beam; rows that stand for others though they are excluded.
  void choose_of_seen(std::int64_t wanted, bool stand_for_equals) {
    if (search_.excluded != nullptr && !stand_for_equals)
      seen_.erase(std::remove_if(seen_.begin(), seen_.end(),
                                 [&](std::uint64_t k) { return excluded(static_cast<std::uint32_t>(k)); }),
                  seen_.end());
    if (static_cast<std::int64_t>(seen_.size()) > wanted && !(search_.excluded != nullptr && stand_for_equals)) {
      std::nth_element(seen_.begin(), seen_.begin() + wanted, seen_.end());
      seen_.resize(static_cast<std::size_t>(wanted));
    }
    std::sort(seen_.begin(), seen_.end());
    best_.rows().clear();
    for (const std::uint64_t k : seen_) best_.rows().push_back({{0.0f, static_cast<std::int32_t>(k)}, true});
  }

  // Where links are read, and not before: they may be a mapped file, of which a search needs few pages.
  void check(std::int32_t node) const {
    if (node >= search_.graph.num_nodes) throw std::invalid_argument("a link of the graph is not a node");
  }

  // Expands the best node that is not expanded yet, until the best of the beam all are. All before `next` are expanded.
  void walk() {
    const Graph& graph = search_.graph;
    const CodedVectors& vectors = search_.nodes;
    std::fill(visited_.begin(), visited_.end(), 0);
    seen_.clear();
    kernels_.int8_dots(code_.data(), vectors.codes, vectors.stride, graph.entries, graph.num_entries, products_.data());
    for (std::int64_t i = 0; i < graph.num_entries; ++i) {
      const Place start{{score(graph.entries[i], products_[i]), graph.entries[i]}, false};
      if (!visit(start.index)) continue;
      see(start);
      if (best_.admits(start)) best_.insert(start);
    }
    std::int64_t next = 0;
    while (next < static_cast<std::int64_t>(best_.rows().size())) {
      Place& node = best_.rows()[next];
      if (node.expanded) {
        ++next;
        continue;
      }
      node.expanded = true;
      next = std::min(next + 1, expand(node.index));
    }
  }

  // Looks at a node's neighbours. Returns the foremost place that one of them took, or one beyond all places.
  std::int64_t expand(std::int32_t node) {
    const Graph& graph = search_.graph;
    const CodedVectors& vectors = search_.nodes;
    const std::int32_t* links = graph.links + node * graph.degree;
    std::int64_t num_fresh = 0;
    // All are asked for before the first is multiplied: each lies elsewhere in memory, and so they are waited for at
    // once.
    for (std::int64_t i = 0; i < graph.degree && links[i] >= 0; ++i) {
      check(links[i]);
      if (!visit(links[i])) continue;
      const std::int8_t* codes = vectors.codes + links[i] * vectors.stride;
      for (std::int64_t byte = 0; byte < vectors.stride; byte += kCacheLine) prefetch(codes + byte);
      prefetch(vectors.scales + links[i]);
      fresh_[num_fresh++] = links[i];
    }
    kernels_.int8_dots(code_.data(), vectors.codes, vectors.stride, fresh_.data(), num_fresh, products_.data());
    std::int64_t foremost = static_cast<std::int64_t>(best_.rows().size()) + num_fresh;
    for (std::int64_t i = 0; i < num_fresh; ++i) {
      const Place item{{score(fresh_[i], products_[i]), fresh_[i]}, false};
      see(item);
      if (!best_.admits(item)) continue;
      prefetch(graph.links + item.index * graph.degree);  // it may be the next to be expanded
      foremost = std::min(foremost, best_.insert(item));
    }
    return foremost;
  }

  // All rows of a part that are not excluded; `chosen` has them where they are listed. The part begins at row `first`.
  void scan(const CodedVectors& part, std::int64_t first, const std::vector<std::int32_t>& chosen) {
    const std::int64_t size = chosen_.listed ? static_cast<std::int64_t>(chosen.size()) : part.size;
    const std::int64_t step = chosen_.listed ? kRowsPerGather : kRowsPerScan;
    for (std::int64_t begin = 0; begin < size; begin += step) {
      const std::int64_t count = std::min(step, size - begin);
      const std::int32_t* rows = chosen_.listed ? chosen.data() + begin : nullptr;
      if (chosen_.listed) {  // rows in sequence need no asking: processors foresee them
        for (std::int64_t i = begin + step; i < std::min(begin + 2 * step, size); ++i)
          for (std::int64_t byte = 0; byte < part.stride; byte += kCacheLine)
            prefetch(part.codes + chosen[i] * part.stride + byte);
      }
      const std::int8_t* codes = part.codes + (chosen_.listed ? 0 : begin * part.stride);
      kernels_.int8_dots(code_.data(), codes, part.stride, rows, count, products_.data());
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t row = chosen_.listed ? rows[i] : begin + i;
        const Place item{{static_cast<float>(products_[i]) * part.scales[row], static_cast<std::int32_t>(first + row)},
                         true};
        // Few rows are admitted, so that few flags are read where that is asked first.
        if (keeps_seen_) {
          see(item);
        } else if (collects_) {
          if (!excluded(item.index)) best_.collect(item);
        } else if (best_.admits(item) && !excluded(item.index)) {
          best_.insert(item);
        }
      }
    }
  }

  const CandidateSearch& search_;
  const Chosen& chosen_;
  const KernelTable& kernels_;
  std::vector<std::int8_t> code_;
  std::vector<std::uint64_t> visited_;
  std::vector<std::int32_t> products_;
  std::vector<std::int32_t> fresh_;
  Best best_;
  bool collects_ = false;  // rows of a scan that wants too many to keep them sorted
  std::vector<std::uint64_t> seen_;
  bool keeps_seen_ = false;  // all that a walk looks at, since more is wanted than its beam holds
};

}  // namespace

std::int64_t CandidateSearch::num_found() const { return std::min(num_candidates, size() - num_excluded); }

void CandidateSearch::run(const float* queries, std::int64_t num_queries, std::int64_t* out, int num_threads) const {
  const std::int64_t found = num_found();
  if (found <= 0) return;
  for (std::int64_t i = 0; i < graph.num_entries; ++i)
    if (graph.entries[i] < 0 || graph.entries[i] >= graph.num_nodes)
      throw std::invalid_argument("an entry of the graph is not a node");
  const Chosen chosen(*this);
  parallel_for(num_queries, num_threads, [&] {
    return [&, search = Searcher(*this, chosen)](std::int64_t i) mutable {
      search(queries + i * nodes.dim, out + i * found);
    };
  });
}

}  // namespace lemur

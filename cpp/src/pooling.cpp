#include "lemur/pooling.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "lemur/cpu.hpp"
#include "lemur/parallel.hpp"

namespace lemur {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kUnitTolerance = 0.01;  // of lengths: float16 tokens of length 1 are within a tenth of that
constexpr double kLeastLength = 1e-12;   // of a mean that has a direction, for members of length 1
constexpr std::int64_t kRowsAtOnce = 64;

// How many pieces so many tokens are pooled in, and where piece i begins: all are of one length, but for one token.
std::int64_t num_pieces(std::int64_t num_tokens, const Pooling& pooling) {
  return (num_tokens + pooling.piece - 1) / pooling.piece;
}
std::int64_t piece_begin(std::int64_t num_tokens, std::int64_t i, std::int64_t pieces) {
  return num_tokens * i / pieces;
}

void check(const Pooling& pooling) {
  if (pooling.factor < 1) throw std::invalid_argument("the pool factor must be at least 1");
  if (pooling.protected_tokens < 0) throw std::invalid_argument("the number of protected tokens must be at least 0");
  if (pooling.piece < 1 || pooling.piece > kMaxPoolingPiece)
    throw std::invalid_argument("a piece must have 1 to " + std::to_string(kMaxPoolingPiece) + " tokens");
}

// Two clusters that became one; each is named by one of its tokens.
struct Merge {
  double cost;
  std::int32_t first, second;
};

// The smallest of row[0 .. size), and where it is first.
struct Least {
  double value;
  std::int64_t place;
};
Least least(const double* row, std::int64_t size) {
  double best[4] = {kInfinity, kInfinity, kInfinity, kInfinity};
  std::int64_t i = 0;
  for (; i + 4 <= size; i += 4)
    for (int lane = 0; lane < 4; ++lane) best[lane] = row[i + lane] < best[lane] ? row[i + lane] : best[lane];
  for (; i < size; ++i) best[0] = row[i] < best[0] ? row[i] : best[0];
  const double value = std::min(std::min(best[0], best[1]), std::min(best[2], best[3]));
  std::int64_t place = 0;
  while (place < size && row[place] != value) ++place;
  return {value, place};
}

// Pooled tokens of a piece: so many that all pieces together have one for each `factor` tokens, and at least one.
std::int64_t wanted_of(std::int64_t begin, std::int64_t end, const Pooling& pooling) {
  return std::max<std::int64_t>(end / pooling.factor - begin / pooling.factor, 1);
}

// One thread's scratch memory.
class Pooler {
 public:
  Pooler(const Pooling& pooling, std::int64_t dim) : pooling_(pooling), dim_(dim), kernels_(active_kernels()) {}

  // The pooled tokens of a document, into `tokens`; how many these are.
  std::int64_t pool(const TokenView& view, TokenRange range, float* tokens, std::uint16_t* groups) {
    const std::int64_t size = range.size(), first = std::min(size, pooling_.protected_tokens), left = size - first;
    read(view, range);
    parents_.resize(static_cast<std::size_t>(size));
    std::iota(parents_.begin(), parents_.end(), 0);
    const std::int64_t pieces = num_pieces(left, pooling_);
    for (std::int64_t i = 0; i < pieces; ++i) {
      const std::int64_t begin = piece_begin(left, i, pieces), end = piece_begin(left, i + 1, pieces);
      const std::int64_t wanted = wanted_of(begin, end, pooling_);
      if (wanted < end - begin) ward(first + begin, end - begin, wanted);
    }
    return write(size, tokens, groups);
  }

 private:
  const float* row(std::int64_t token) const { return rows_.data() + token * dim_; }
  const float* direction(std::int64_t token) const { return directions_.data() + token * dim_; }

  void read(const TokenView& view, TokenRange range) {
    const std::int64_t size = range.size();
    rows_.resize(static_cast<std::size_t>(size * dim_));
    if (view.type == TokenType::kFloat16)
      kernels_.widen(static_cast<const std::uint16_t*>(view.row(range.begin)), size * dim_, rows_.data());
    else
      std::copy_n(static_cast<const float*>(view.row(range.begin)), size * dim_, rows_.data());
    directions_ = rows_;
    lengths_.resize(static_cast<std::size_t>(size));
    for (std::int64_t t = 0; t < size; ++t) {
      double square = 0;
      for (std::int64_t k = 0; k < dim_; ++k) square += static_cast<double>(row(t)[k]) * row(t)[k];
      const double length = std::sqrt(square);
      const bool is_unit = std::abs(length - 1) <= kUnitTolerance;
      lengths_[t] = is_unit ? 1 : length;
      if (is_unit || length == 0) continue;
      for (std::int64_t k = 0; k < dim_; ++k)
        directions_[t * dim_ + k] = static_cast<float>(directions_[t * dim_ + k] / length);
    }
  }

  // Squares of cosine distances of all tokens from `begin` on; of a token to itself infinity.
  void measure(std::int64_t begin, std::int64_t size) {
    const std::int64_t panels = panels_of(size), width = panels * kPanelTokens;
    packed_.assign(static_cast<std::size_t>(width * dim_), 0.0F);
    for (std::int64_t t = 0; t < size; ++t)
      for (std::int64_t k = 0; k < dim_; ++k)
        packed_[(t / kPanelTokens * dim_ + k) * kPanelTokens + t % kPanelTokens] = direction(begin + t)[k];
    products_.resize(static_cast<std::size_t>(kRowsAtOnce * width));
    squares_.resize(static_cast<std::size_t>(size * size));
    for (std::int64_t from = 0; from < size; from += kRowsAtOnce) {
      const std::int64_t count = std::min(kRowsAtOnce, size - from);
      kernels_.products(packed_.data(), panels, direction(begin + from), count, dim_, dim_, products_.data());
      for (std::int64_t j = 0; j < count; ++j) {
        double* out = squares_.data() + (from + j) * size;
        for (std::int64_t t = 0; t < size; ++t) {
          // What is no number, as of a file that is damaged, counts as 1: chains end where all distances are finite.
          const double product = products_[j * width + t] <= 1 ? std::max(products_[j * width + t], -1.0F) : 1;
          const double distance = 1 - product;
          out[t] = distance * distance;
        }
        out[from + j] = kInfinity;
      }
    }
  }

  void ward(std::int64_t begin, std::int64_t size, std::int64_t wanted) {
    measure(begin, size);
    sizes_.assign(static_cast<std::size_t>(size), 1.0);
    merges_.clear();
    chain_.clear();
    std::int64_t start = 0;
    while (static_cast<std::int64_t>(merges_.size()) < size - 1) {
      if (chain_.empty()) {
        while (sizes_[start] == 0) ++start;
        chain_.push_back(static_cast<std::int32_t>(start));
      }
      const std::int32_t last = chain_.back();
      const double* distances = squares_.data() + last * size;
      const Least near = least(distances, size);
      const bool is_back = chain_.size() > 1 && distances[chain_[chain_.size() - 2]] == near.value;
      if (!is_back) {
        chain_.push_back(static_cast<std::int32_t>(near.place));
        continue;
      }
      const std::int32_t before = chain_[chain_.size() - 2];
      chain_.resize(chain_.size() - 2);
      join(size, std::min(last, before), std::max(last, before), near.value);
    }
    // Chains find merges in another order than that of their costs. Those of the same cost happen together.
    std::stable_sort(merges_.begin(), merges_.end(), [](const Merge& a, const Merge& b) { return a.cost < b.cost; });
    const double cut = merges_[static_cast<std::size_t>(size - wanted - 1)].cost;
    for (const Merge& merge : merges_) {
      if (merge.cost > cut) break;
      unite(begin + merge.first, begin + merge.second);
    }
  }

  // Cluster `gone` becomes part of cluster `kept`, by the formula of Lance and Williams for Ward's method. Clusters
  // that are no more have size 0 and are infinitely far.
  void join(std::int64_t size, std::int32_t gone, std::int32_t kept, double cost) {
    merges_.push_back({cost, gone, kept});
    const double a = sizes_[gone], b = sizes_[kept];
    const double* from_gone = squares_.data() + gone * size;
    double* from_kept = squares_.data() + kept * size;
    for (std::int64_t i = 0; i < size; ++i) {
      const double c = sizes_[i];
      const double sum = ((a + c) * from_gone[i] + (b + c) * from_kept[i] - c * cost) / (a + b + c);
      from_kept[i] = std::max(sum, 0.0);
    }
    from_kept[gone] = from_kept[kept] = kInfinity;
    for (std::int64_t i = 0; i < size; ++i) {
      squares_[i * size + kept] = from_kept[i];
      squares_[i * size + gone] = kInfinity;
    }
    sizes_[gone] = 0;
    sizes_[kept] = a + b;
  }

  std::int32_t root(std::int64_t token) {
    while (parents_[token] != token) token = parents_[token] = parents_[parents_[token]];
    return static_cast<std::int32_t>(token);
  }

  // The first token of a cluster is its root, so that clusters have numbers in that order.
  void unite(std::int64_t a, std::int64_t b) {
    const std::int32_t x = root(a), y = root(b);
    parents_[std::max(x, y)] = std::min(x, y);
  }

  std::int64_t write(std::int64_t size, float* tokens, std::uint16_t* groups) {
    numbers_.resize(static_cast<std::size_t>(size));
    std::int64_t count = 0;
    for (std::int64_t t = 0; t < size; ++t) {
      const std::int32_t first = root(t);
      if (first == t) numbers_[t] = static_cast<std::uint16_t>(count++);
      groups[t] = numbers_[first];
    }
    sums_.assign(static_cast<std::size_t>(count * dim_), 0.0);
    members_.assign(static_cast<std::size_t>(count), Members{});
    for (std::int64_t t = 0; t < size; ++t) {
      Members& members = members_[groups[t]];
      double* sum = sums_.data() + groups[t] * dim_;
      for (std::int64_t k = 0; k < dim_; ++k) sum[k] += row(t)[k];
      if (members.size++ == 0) members.first = t;
      members.length += lengths_[t];
      members.num_zeros += lengths_[t] == 0;
    }
    for (std::int64_t i = 0; i < count; ++i) write_one(members_[i], sums_.data() + i * dim_, tokens + i * dim_);
    return count;
  }

  struct Members {
    std::int64_t first = 0, size = 0, num_zeros = 0;
    double length = 0;
  };

  void write_one(const Members& members, const double* sum, float* out) const {
    if (members.size == 1) {
      std::copy_n(row(members.first), dim_, out);
      return;
    }
    double square = 0;
    for (std::int64_t k = 0; k < dim_; ++k) square += sum[k] * sum[k];
    const double mean = std::sqrt(square) / static_cast<double>(members.size);
    const double length =
        members.length / static_cast<double>(std::max<std::int64_t>(members.size - members.num_zeros, 1));
    const double least = kLeastLength * length;
    const double factor = length == 0 ? 0 : length / std::max(mean, least) / static_cast<double>(members.size);
    for (std::int64_t k = 0; k < dim_; ++k) out[k] = static_cast<float>(sum[k] * factor);
  }

  const Pooling& pooling_;
  const std::int64_t dim_;
  const KernelTable& kernels_;
  std::vector<float> rows_, directions_, packed_, products_;
  std::vector<double> lengths_, squares_, sizes_, sums_;
  std::vector<Merge> merges_;
  std::vector<std::int32_t> chain_, parents_;
  std::vector<std::uint16_t> numbers_;
  std::vector<Members> members_;
};

}  // namespace

std::int64_t most_pooled_tokens(std::int64_t num_tokens, const Pooling& pooling) {
  check(pooling);
  const std::int64_t first = std::min(num_tokens, pooling.protected_tokens), left = num_tokens - first;
  const std::int64_t pieces = num_pieces(left, pooling);
  std::int64_t count = first;
  for (std::int64_t i = 0; i < pieces; ++i)
    count += wanted_of(piece_begin(left, i, pieces), piece_begin(left, i + 1, pieces), pooling);
  return count;
}

void pool(const RaggedView& documents, const Pooling& pooling, const Pooled& out, int num_threads) {
  check(pooling);
  const std::int64_t dim = documents.tokens.dim;
  std::vector<std::int64_t> firsts(static_cast<std::size_t>(documents.size));
  std::int64_t used = 0;
  for (std::int64_t i = 0; i < documents.size; ++i) {
    firsts[i] = used;
    const std::int64_t most = most_pooled_tokens(documents.range(i).size(), pooling);
    if (most > kMaxPooledTokens)
      throw std::invalid_argument("document " + std::to_string(i) + " would have " + std::to_string(most) +
                                  " pooled tokens, which is more than " + std::to_string(kMaxPooledTokens));
    used += most;
  }
  const std::int64_t begin = documents.size == 0 ? 0 : documents.range(0).begin;
  parallel_for(documents.size, num_threads, [&] {
    return [&, pooler = Pooler(pooling, dim)](std::int64_t i) mutable {
      const TokenRange range = documents.range(i);
      out.sizes[i] =
          pooler.pool(documents.tokens, range, out.tokens + firsts[i] * dim, out.groups + (range.begin - begin));
    };
  });
}

}  // namespace lemur

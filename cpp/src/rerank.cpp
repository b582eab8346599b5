#include "lemur/rerank.hpp"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "lemur/codec.hpp"
#include "lemur/cpu.hpp"
#include "lemur/int8.hpp"
#include "lemur/kernels/prefetch.hpp"
#include "lemur/parallel.hpp"
#include "lemur/read_ahead.hpp"
#include "lemur/scored.hpp"
#include "lemur/scorer.hpp"

namespace lemur {
namespace {

constexpr double kMargin = 6.0;            // standard deviations
constexpr std::int64_t kFirstRound = 8;    // documents scored both ways, at least, before their difference is believed
constexpr std::int64_t kLaterRound = 4;    // at a time, by each thread: few, since what they show may end it
constexpr std::int64_t kAskedAtOnce = 32;  // documents whose tokens are asked for: a disk gives many as soon as one
constexpr std::int64_t kTaskCandidates = 32;  // of the first pass: in a task, each fetches the next one's codes

using ScoredDocument = Scored<std::int64_t>;

struct CodedQuery {
  CodedQuery(const RaggedView& queries, std::int64_t i, const PackedQuery& packed, std::int64_t stride)
      : exact(packed),
        panels(static_cast<const float*>(queries.tokens.row(queries.range(i).begin)), packed.num_tokens,
               queries.tokens.dim, stride) {}
  const PackedQuery& exact;
  Int8Panels panels;
};

// Where reads go to the disk, asks for what scores by codes will read of documents, or exact ones.
class Ahead {
 public:
  explicit Ahead(const DocumentsView& documents)
      : documents_(documents), is_wanted_(documents.disk_reads().are_likely()) {}

  template <class IndexOf>
  void ask_for_codes(std::int64_t count, const IndexOf& index_of) {
    if (!is_wanted_) return;
    ask_for_offsets(count, index_of);
    for (std::int64_t i = 0; i < count; ++i) add_codes(index_of(i));
    ranges_.ask();
  }

  template <class IndexOf>
  void ask_for_tokens(std::int64_t count, const IndexOf& index_of) {
    if (!is_wanted_ || documents_.is_coded_alone()) return;
    for (std::int64_t i = 0; i < count; ++i) add_tokens(documents_.document(index_of(i)));
    ranges_.ask();
  }

 private:
  // Which say what else there is to read.
  template <class IndexOf>
  void ask_for_offsets(std::int64_t count, const IndexOf& index_of) {
    constexpr std::int64_t kBytes = 2 * sizeof(std::int64_t);
    for (std::int64_t i = 0; i < count; ++i) {
      ranges_.add(documents_.offsets(index_of(i)), kBytes);
      if (documents_.small() != nullptr) ranges_.add(documents_.small()->offsets(index_of(i)), kBytes);
    }
    ranges_.ask();
  }

  void add_codes(std::int64_t index) {
    if (const SmallDocuments* small = documents_.small(); small != nullptr) {
      const auto [tokens, lengths] = small->document(index);
      ranges_.add(tokens.codes, tokens.num_rows * small->codec().num_bytes());
      ranges_.add(tokens.centroids, tokens.num_rows * 2);
      ranges_.add(tokens.scales, tokens.num_rows * 2);
      ranges_.add(lengths, tokens.num_rows * 4);
      return;
    }
    const DocumentsView::Document document = documents_.document(index);
    const TokenCodes& codes = document.chunk->codes;
    if (codes.codes == nullptr) return add_tokens(document);
    const std::int64_t stride = int8_stride(document.chunk->tokens.dim), row = document.range.begin;
    ranges_.add(codes.codes + row * stride, document.range.size() * stride);
    ranges_.add(codes.scales + row, document.range.size() * 4);
    ranges_.add(codes.sums + row, document.range.size() * 4);
  }

  void add_tokens(const DocumentsView::Document& document) {
    const TokenView& tokens = document.chunk->tokens;
    const auto* begin = static_cast<const char*>(tokens.row(document.range.begin));
    ranges_.add(begin, static_cast<const char*>(tokens.row(document.range.end)) - begin);
  }

  const DocumentsView& documents_;
  const bool is_wanted_;
  PageRanges ranges_;
};

// Scores by codes, or exactly where a document has none. Scratch memory of one thread.
class FirstPass {
 public:
  FirstPass(const KernelTable& kernels, const DocumentsView& documents)
      : kernels_(kernels), documents_(documents), exact_(kernels, documents) {
    if (documents.small() != nullptr) small_.emplace(kernels, *documents.small());
  }

  // `next` is scored after this one.
  float operator()(const CodedQuery& query, const DocumentsView::Document& document,
                   const DocumentsView::Document& next) {
    if (small_) {
      const SmallDocuments& all = *documents_.small();
      return score(query, small_->int8_rows(all.document(document.index), all.document(next.index)));
    }
    const TokenCodes& codes = document.chunk->codes;
    if (codes.codes == nullptr) return exact_(query.exact, document, next);
    const std::int64_t dim = document.chunk->tokens.dim, stride = int8_stride(dim), row = document.range.begin;
    const TokenCodes& ahead = next.chunk->codes;
    if (ahead.codes != nullptr) {
      prefetch(ahead.scales + next.range.begin);
      prefetch(ahead.sums + next.range.begin);
    }
    return score(query, {codes.codes + row * stride, codes.scales + row, codes.sums + row, document.range.size(), dim,
                         stride, ahead.codes == nullptr ? nullptr : ahead.codes + next.range.begin * stride,
                         ahead.codes == nullptr ? 0 : next.range.size() * stride});
  }

 private:
  float score(const CodedQuery& query, const Int8Document& document) {
    if (document.num_rows == 0) return kNone;
    best_.resize(static_cast<std::size_t>(query.panels.num_panels() * kPanelTokens));
    kernels_.int8_document(query.panels.panel(0), query.panels.num_panels(), document, best_.data());
    float total = 0.0f;  // float32 will do: what it rounds is part of the difference that is measured
    for (std::int64_t t = 0; t < query.exact.num_tokens; ++t) total += best_[t] * query.panels.scale(t);
    return total == total ? total : kNone;  // as of exact scores (scorer.hpp)
  }

  const KernelTable& kernels_;
  const DocumentsView& documents_;
  Scorer exact_;
  std::optional<SmallReader> small_;
  std::vector<float> best_;
};

// What exact scores are above coded ones: mean and standard deviation so far, by Welford's updates, which do not cancel
// where scores are large beside their differences.
class Difference {
 public:
  void add(double value) {
    ++count_;
    const double step = value - mean_;
    mean_ += step / count_;
    squares_ += step * (value - mean_);
  }
  double limit() const { return mean_ + kMargin * std::sqrt(squares_ / std::max(count_ - 1.0, 1.0)); }

 private:
  double count_ = 0, mean_ = 0, squares_ = 0;
};

class Reranker {
 public:
  Reranker(const RaggedView& queries, const DocumentsView& documents, std::int64_t k)
      : kernels_(active_kernels()),
        coded_(queries, documents.small() == nullptr ? nullptr : &documents.small()->codec()),
        packed_(pack_queries(documents.is_coded_alone() ? coded_.view() : queries)),
        documents_(documents),
        stride_(documents.small() == nullptr ? int8_stride(queries.tokens.dim) : documents.small()->codec().stride()),
        k_(k) {}

  // The best k candidates of query i, at most; the work is shared out to `num_threads`.
  std::vector<ScoredDocument> operator()(std::int64_t i, const std::int64_t* candidates, std::int64_t num_candidates,
                                         int num_threads) const {
    const DiskReads::Watch watch(documents_.disk_reads());
    Ahead ahead(documents_);
    ahead.ask_for_codes(num_candidates, [&](std::int64_t c) { return candidates[c]; });
    const CodedQuery query(coded_.view(), i, packed_[i], stride_);
    std::vector<ScoredDocument> coded(static_cast<std::size_t>(num_candidates));
    parallel_for((num_candidates + kTaskCandidates - 1) / kTaskCandidates, num_threads, [&] {
      return [&, score = FirstPass(kernels_, documents_)](std::int64_t task) mutable {
        const std::int64_t end = std::min(num_candidates, (task + 1) * kTaskCandidates);
        auto next = documents_.document(candidates[task * kTaskCandidates]);
        for (std::int64_t c = task * kTaskCandidates; c < end; ++c) {
          const auto document = next;
          if (c + 1 < end) next = documents_.document(candidates[c + 1]);
          coded[c] = {score(query, document, next), candidates[c]};
        }
      };
    });
    coded.erase(std::remove_if(coded.begin(), coded.end(), [](const ScoredDocument& s) { return s.score == kNone; }),
                coded.end());
    std::sort(coded.begin(), coded.end(), Better());

    // `exact` has the first documents of `coded`, which are scored exactly a round at a time.
    const auto size = static_cast<std::int64_t>(coded.size()), wanted = std::min(k_, size);
    std::vector<ScoredDocument> exact;
    Difference difference;
    std::int64_t round = std::max(wanted, kFirstRound), asked = 0;
    while (static_cast<std::int64_t>(exact.size()) < size) {
      const auto begin = static_cast<std::int64_t>(exact.size());
      if (begin > 0) {
        // The best of the others has coded[begin].score: where even that will not do, none of them will.
        std::nth_element(exact.begin(), exact.begin() + (wanted - 1), exact.end(), Better());
        if (coded[begin].score + difference.limit() < exact[wanted - 1].score) break;
      }
      const std::int64_t end = std::min(size, begin + round);
      exact.resize(static_cast<std::size_t>(end));
      if (end > asked) {
        const std::int64_t first = std::exchange(asked, std::min(size, std::max(end, asked + kAskedAtOnce)));
        ahead.ask_for_tokens(asked - first, [&](std::int64_t c) { return coded[first + c].index; });
      }
      parallel_for(end - begin, num_threads, [&] {
        return [&, score = Scorer(kernels_, documents_)](std::int64_t task) mutable {
          const std::int64_t document = coded[begin + task].index;
          // Threads take tasks in turns, so that one's next task is about num_threads further.
          const std::int64_t next = coded[std::min(begin + task + num_threads, end - 1)].index;
          exact[begin + task] = {score(query.exact, documents_.document(document), documents_.document(next)),
                                 document};
        };
      });
      // In this round's places alone both are of the same document: nth_element moves those before.
      for (std::int64_t c = begin; c < end; ++c)
        difference.add(static_cast<double>(exact[c].score) - static_cast<double>(coded[c].score));
      round = kLaterRound * num_threads;
    }
    std::partial_sort(exact.begin(), exact.begin() + wanted, exact.end(), Better());
    exact.resize(static_cast<std::size_t>(wanted));
    while (!exact.empty() && exact.back().score == kNone) exact.pop_back();  // whose tokens are no numbers
    return exact;
  }

 private:
  const KernelTable& kernels_;
  const TurnedQueries coded_;
  const std::vector<PackedQuery> packed_;
  const DocumentsView& documents_;
  const std::int64_t stride_, k_;
};

}  // namespace

void rerank(const RaggedView& queries, const DocumentsView& documents, const std::int64_t* candidates,
            const std::int64_t* candidate_offsets, std::int64_t k, const RerankResult& out, int num_threads) {
  check_dim(queries.tokens.dim, documents);
  const Reranker rerank_one(queries, documents, k);
  // Each query on one thread where there are enough of them, else all threads on each.
  const bool by_query = queries.size >= num_threads;
  parallel_for(queries.size, by_query ? num_threads : 1, [&] {
    return [&](std::int64_t i) {
      const std::int64_t begin = candidate_offsets[i], size = candidate_offsets[i + 1] - begin;
      const std::vector<ScoredDocument> best = rerank_one(i, candidates + begin, size, by_query ? 1 : num_threads);
      out.counts[i] = static_cast<std::int64_t>(best.size());
      for (std::size_t j = 0; j < best.size(); ++j) {
        out.documents[i * k + static_cast<std::int64_t>(j)] = best[j].index;
        out.scores[i * k + static_cast<std::int64_t>(j)] = best[j].score;
      }
    };
  });
}

}  // namespace lemur

// The core from several threads at once, over the same documents, graph and learned map, which nobody changes: whatever
// is computed has the bits that one thread alone gets. Meant for ThreadSanitizer, which sees races that did no harm.
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "lemur/cpu.hpp"
#include "lemur/features.hpp"
#include "lemur/graph.hpp"
#include "lemur/int8.hpp"
#include "lemur/maxsim.hpp"
#include "lemur/products.hpp"
#include "lemur/rerank.hpp"

namespace {

constexpr std::int64_t kDim = 20, kDocuments = 150, kQueries = 5, kBest = 7;
constexpr std::int64_t kRows = 4000, kLinked = 3900, kVectorDim = 33, kDegree = 3, kFound = 20, kWidth = 40;
constexpr int kThreads = 4, kRounds = 3;

std::atomic<int> failures{0};
std::atomic<long> checks{0};

void check(bool good, const std::string& what) {
  ++checks;
  if (!good && ++failures <= 20) std::printf("FAILED %s\n", what.c_str());
}

std::vector<float> random_floats(std::int64_t size, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<float> out(static_cast<std::size_t>(size));
  for (float& value : out) value = static_cast<float>(static_cast<int>(random() % 201) - 100) / 64.0f;
  return out;
}

std::vector<std::int64_t> random_offsets(std::int64_t size, unsigned most, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::int64_t> out{0};
  for (std::int64_t i = 0; i < size; ++i) out.push_back(out.back() + 1 + static_cast<std::int64_t>(random() % most));
  return out;
}

// Everything that searches share.
struct Shared {
  std::vector<std::int64_t> offsets = random_offsets(kDocuments, 9, 1), query_offsets = random_offsets(kQueries, 20, 2);
  std::vector<float> tokens = random_floats(offsets.back() * kDim, 3);
  std::vector<float> query_tokens = random_floats(query_offsets.back() * kDim, 4);
  std::int64_t stride = lemur::int8_stride(kDim);
  std::vector<std::int8_t> codes = std::vector<std::int8_t>(static_cast<std::size_t>(offsets.back() * stride));
  std::vector<float> scales = std::vector<float>(static_cast<std::size_t>(offsets.back()));
  std::vector<std::int32_t> sums = std::vector<std::int32_t>(static_cast<std::size_t>(offsets.back()));
  lemur::TokenView view{tokens.data(), lemur::TokenType::kFloat32, offsets.back(), kDim};
  lemur::RaggedView queries{
      {query_tokens.data(), lemur::TokenType::kFloat32, query_offsets.back(), kDim}, query_offsets.data(), kQueries};
  lemur::RaggedView one_query{queries.tokens, query_offsets.data(), 1};
  lemur::DocumentsView documents{
      {{view, offsets.data(), 50, {codes.data(), scales.data(), sums.data()}},
       {view, offsets.data() + 50, kDocuments - 50, {codes.data(), scales.data(), sums.data()}}}};
  std::vector<std::int64_t> candidates, candidate_offsets{0};

  std::int64_t vector_stride = lemur::int8_stride(kVectorDim);
  std::vector<float> vectors = random_floats(kRows * kVectorDim, 5);
  std::vector<float> vector_queries = random_floats(kQueries * kVectorDim, 6);
  std::vector<std::int8_t> vector_codes = std::vector<std::int8_t>(static_cast<std::size_t>(kRows * vector_stride));
  std::vector<float> vector_scales = std::vector<float>(static_cast<std::size_t>(kRows));
  std::vector<std::int32_t> links = std::vector<std::int32_t>(static_cast<std::size_t>(kRows * kDegree), -1);
  std::vector<std::int32_t> entries{0, 17, kRows / 2};
  std::vector<std::uint8_t> excluded = std::vector<std::uint8_t>(static_cast<std::size_t>(kRows));
  std::int64_t num_excluded = 0;

  std::vector<float> weight = random_floats(kWidth * kDim, 7), bias = random_floats(kWidth, 8);
  std::vector<float> norm_weight = random_floats(kWidth, 9), query_map = random_floats(kWidth * kVectorDim, 10);
  lemur::QueryEncoder encoder{{{weight.data(), kWidth, kDim, bias.data(), norm_weight.data(), bias.data()}},
                              query_map.data(),
                              kVectorDim,
                              true};

  Shared() {
    lemur::quantise_tokens(view, {codes.data(), scales.data(), sums.data()}, 1);
    for (std::int64_t i = 0; i < kQueries; ++i) {
      for (std::int64_t l = 0; l < kDocuments; ++l) candidates.push_back(l);
      candidate_offsets.push_back(static_cast<std::int64_t>(candidates.size()));
    }
    std::mt19937 random(11);
    for (std::int64_t r = 0; r < kRows; ++r) {
      vector_scales[r] =
          lemur::quantise(vectors.data() + r * kVectorDim, kVectorDim, vector_codes.data() + r * vector_stride);
      for (std::int64_t j = 0; j < kDegree; ++j) links[r * kDegree + j] = static_cast<std::int32_t>(random() % kLinked);
      excluded[r] = r % 3 == 0;
      num_excluded += excluded[r];
    }
  }

  // The last rows have no links.
  lemur::CandidateSearch search(bool with_excluded) const {
    lemur::CandidateSearch out;
    out.nodes = {vector_codes.data(), vector_scales.data(), kLinked, kVectorDim, vector_stride};
    out.recent = {vector_codes.data() + kLinked * vector_stride, vector_scales.data() + kLinked, kRows - kLinked,
                  kVectorDim, vector_stride};
    out.graph = {links.data(), kLinked, kDegree, entries.data(), static_cast<std::int64_t>(entries.size())};
    out.num_candidates = kFound;
    out.beam = 2 * kFound;
    out.excluded = with_excluded ? excluded.data() : nullptr;
    out.num_excluded = with_excluded ? num_excluded : 0;
    return out;
  }
};

// All that a search computes.
struct Results {
  std::vector<float> maxima, int8_maxima, scores, candidate_scores, best_scores, one_best_scores, encoded;
  std::vector<std::int64_t> best, one_best, found, found_of_some;
  std::vector<double> products;

  bool operator==(const Results& other) const {
    return maxima == other.maxima && int8_maxima == other.int8_maxima && scores == other.scores &&
           candidate_scores == other.candidate_scores && best_scores == other.best_scores &&
           one_best_scores == other.one_best_scores && encoded == other.encoded && best == other.best &&
           one_best == other.one_best && found == other.found && found_of_some == other.found_of_some &&
           products == other.products;
  }
};

Results computed(const Shared& shared, int num_threads) {
  Results out;
  const std::int64_t num_x = shared.query_offsets.back();
  const auto maxima = [&](std::vector<float>& into, lemur::Precision precision) {
    into.resize(static_cast<std::size_t>(num_x * kDocuments));
    lemur::token_maxima(shared.query_tokens.data(), num_x, kDim, shared.documents, {into.data(), kDocuments, 1},
                        precision, num_threads);
  };
  maxima(out.maxima, lemur::Precision::kFloat32);
  maxima(out.int8_maxima, lemur::Precision::kInt8);
  out.scores.resize(kQueries * kDocuments);
  lemur::scores(shared.queries, shared.documents, out.scores.data(), num_threads);
  out.candidate_scores.resize(shared.candidates.size());
  lemur::candidate_scores(shared.queries, shared.documents, shared.candidates.data(), shared.candidate_offsets.data(),
                          out.candidate_scores.data(), num_threads);
  const auto rerank = [&](const lemur::RaggedView& queries, std::vector<std::int64_t>& best,
                          std::vector<float>& scores) {
    std::vector<std::int64_t> counts(static_cast<std::size_t>(queries.size));
    best.resize(static_cast<std::size_t>(queries.size * kBest));
    scores.resize(best.size());
    lemur::rerank(queries, shared.documents, shared.candidates.data(), shared.candidate_offsets.data(), kBest,
                  {best.data(), scores.data(), counts.data()}, num_threads);
    for (const std::int64_t count : counts) check(count == kBest, "count of a rerank");
  };
  rerank(shared.queries, out.best, out.best_scores);
  rerank(shared.one_query, out.one_best, out.one_best_scores);  // all threads on the one
  for (const bool with_excluded : {false, true}) {
    std::vector<std::int64_t>& found = with_excluded ? out.found_of_some : out.found;
    found.resize(kQueries * kFound);
    shared.search(with_excluded).run(shared.vector_queries.data(), kQueries, found.data(), num_threads);
  }
  out.encoded.resize(kQueries * kVectorDim);
  shared.encoder.encode(shared.queries, out.encoded.data(), num_threads);
  out.products.resize(50 * kVectorDim);
  lemur::products(shared.tokens.data(), 50, lemur::Columns(shared.query_map.data(), kVectorDim, kDim, 1),
                  out.products.data(), num_threads);
  return out;
}

}  // namespace

int main() {
  for (const std::string& isa : lemur::supported_isas()) {
    lemur::force_isa(isa);
    const Shared shared;
    const Results expected = computed(shared, 1);
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t)
      threads.emplace_back([&, t] {
        for (int round = 0; round < kRounds; ++round) {
          check(computed(shared, 1 + (t + round) % 3) == expected, isa + " beside other threads");
          try {  // an error in one of several threads is thrown by the caller's
            std::vector<float> out(shared.candidates.size(), 0.0f);
            std::vector<std::int64_t> outside = shared.candidates;
            outside[outside.size() / 2] = kDocuments;
            lemur::candidate_scores(shared.queries, shared.documents, outside.data(), shared.candidate_offsets.data(),
                                    out.data(), 3);
            check(false, isa + " a candidate that there is not");
          } catch (const std::out_of_range&) {
            check(true, "");
          }
        }
      });
    for (std::thread& thread : threads) thread.join();
    std::printf("%s ", isa.c_str());
  }
  std::printf("%ld checks, %d failures\n", checks.load(), failures.load());
  return failures == 0 ? 0 : 1;
}

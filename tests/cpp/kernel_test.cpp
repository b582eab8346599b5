// The core without Python: every kernel this machine has against a float64 oracle. Also cross-compiled for Arm.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "lemur/cpu.hpp"
#include "lemur/maxsim.hpp"
#include "lemur/products.hpp"

namespace {

int failures = 0;
long checks = 0;

void check(bool good, const std::string& what) {
  ++checks;
  if (!good && ++failures <= 20) std::printf("FAILED %s\n", what.c_str());
}

// Half-precision values are made from small integers, which both precisions hold exactly.
std::uint16_t half_of(int value) {  // -2048 .. 2048
  if (value == 0) return 0;
  const std::uint16_t sign = value < 0 ? 0x8000 : 0;
  int magnitude = std::abs(value), exponent = 25;
  while (magnitude < 1024) magnitude *= 2, --exponent;
  return static_cast<std::uint16_t>(sign | (exponent << 10) | (magnitude & 0x3ff));
}

void test_maxima(const std::string& isa, std::int64_t dim, std::int64_t num_x, bool half) {
  std::mt19937 random(static_cast<unsigned>(dim * 1000 + num_x));
  std::uniform_int_distribution<int> draw(-100, 100);
  const std::vector<std::int64_t> lengths{1, 2, 3, 5, 6, 7, 11, 12, 13, 96, 97, 150};
  std::vector<std::int64_t> offsets{0};
  for (const auto n : lengths) offsets.push_back(offsets.back() + n);
  std::vector<float> tokens(offsets.back() * dim), x(num_x * dim);
  std::vector<std::uint16_t> half_tokens(tokens.size());
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const int value = draw(random);
    tokens[i] = static_cast<float>(value);
    half_tokens[i] = half_of(value);
  }
  for (auto& value : x) value = static_cast<float>(draw(random)) / 64.0f;
  const std::int64_t count = static_cast<std::int64_t>(lengths.size());
  const lemur::TokenView view{half ? static_cast<const void*>(half_tokens.data()) : tokens.data(),
                              half ? lemur::TokenType::kFloat16 : lemur::TokenType::kFloat32, offsets.back(), dim};
  // two chunks, so that the search for a document's chunk is used
  const lemur::DocumentsView documents({{view, offsets.data(), 5}, {view, offsets.data() + 5, count - 5}});

  std::vector<double> expected(num_x * count);
  for (std::int64_t i = 0; i < num_x; ++i)
    for (std::int64_t l = 0; l < count; ++l) {
      double best = -std::numeric_limits<double>::infinity();
      for (std::int64_t t = offsets[l]; t < offsets[l + 1]; ++t) {
        double product = 0;
        for (std::int64_t k = 0; k < dim; ++k) product += static_cast<double>(x[i * dim + k]) * tokens[t * dim + k];
        best = std::max(best, product);
      }
      expected[i * count + l] = best;
    }
  const double tolerance = 1e-6 * (dim + 2) * 200.0;
  const std::string name = isa + " dim " + std::to_string(dim) + " x " + std::to_string(num_x) + (half ? " half" : "");

  std::vector<float> maxima(num_x * count), scores(count), candidate_scores(count);
  lemur::token_maxima(x.data(), num_x, dim, documents, {maxima.data(), count, 1}, lemur::Precision::kFloat32, 2);
  for (std::size_t i = 0; i < maxima.size(); ++i)
    check(std::abs(maxima[i] - expected[i]) <= tolerance, name + " maxima");

  const std::int64_t query_offsets[] = {0, num_x};
  const lemur::RaggedView query{{x.data(), lemur::TokenType::kFloat32, num_x, dim}, query_offsets, 1};
  lemur::scores(query, documents, scores.data(), 2);
  std::vector<std::int64_t> candidates(count);
  for (std::int64_t l = 0; l < count; ++l) candidates[l] = count - 1 - l;
  const std::int64_t candidate_offsets[] = {0, count};
  lemur::candidate_scores(query, documents, candidates.data(), candidate_offsets, candidate_scores.data(), 2);
  for (std::int64_t l = 0; l < count; ++l) {
    double sum = 0;
    for (std::int64_t i = 0; i < num_x; ++i) sum += expected[i * count + l];
    check(std::abs(scores[l] - sum) <= tolerance * num_x, name + " scores");
    check(candidate_scores[count - 1 - l] == scores[l], name + " candidate scores");
  }
}

void test_products(const std::string& isa) {
  const std::int64_t num_a = 50, depth = 600, num_b = 35;
  std::mt19937 random(5);
  std::uniform_int_distribution<int> draw(-8, 8);  // small integers: every order of summation is exact
  std::vector<float> a(num_a * depth), b(depth * num_b);
  for (auto& value : a) value = static_cast<float>(draw(random));
  for (auto& value : b) value = static_cast<float>(draw(random));
  std::vector<double> out(num_a * num_b);
  lemur::products(a.data(), num_a, b.data(), num_b, depth, out.data(), 2);
  for (std::int64_t j = 0; j < num_a; ++j)
    for (std::int64_t i = 0; i < num_b; ++i) {
      double sum = 0;
      for (std::int64_t k = 0; k < depth; ++k) sum += static_cast<double>(a[j * depth + k]) * b[k * num_b + i];
      check(out[j * num_b + i] == sum, isa + " products");
    }
}

template <class Error, class Call>
void check_throws(const Call& call, const std::string& what) {
  bool thrown = false;
  try {
    call();
  } catch (const Error&) {
    thrown = true;
  }
  check(thrown, what);
}

void test_errors() {
  const float tokens[6] = {};
  const std::int64_t good[] = {0, 2, 3}, backwards[] = {0, 3, 2}, outside[] = {0, 2, 9};
  const lemur::TokenView view{tokens, lemur::TokenType::kFloat32, 3, 2};
  const std::int64_t query_offsets[] = {0, 1}, candidate_offsets[] = {0, 1};
  const lemur::RaggedView query{{tokens, lemur::TokenType::kFloat32, 1, 2}, query_offsets, 1};
  float out[2];
  for (const auto* offsets : {backwards, outside}) {
    const lemur::DocumentsView documents({{view, offsets, 2}});
    check_throws<std::invalid_argument>([&] { lemur::scores(query, documents, out, 1); }, "bad offsets");
  }
  const lemur::DocumentsView documents({{view, good, 2}});
  for (const std::int64_t candidate : {std::int64_t{-1}, std::int64_t{2}})
    check_throws<std::out_of_range>(
        [&] { lemur::candidate_scores(query, documents, &candidate, candidate_offsets, out, 1); }, "bad candidate");
  check_throws<std::invalid_argument>(
      [&] { lemur::token_maxima(tokens, 1, 3, documents, {out, 2, 1}, lemur::Precision::kFloat32, 1); }, "other dim");
  check_throws<std::invalid_argument>([] { lemur::force_isa("mmx"); }, "unknown isa");
}

}  // namespace

int main() {
  for (const std::string& isa : lemur::supported_isas()) {
    lemur::force_isa(isa);
    for (const std::int64_t dim : {1, 3, 8, 17, 64, 128, 131})
      for (const std::int64_t num_x : {1, 15, 16, 17, 32, 40})
        for (const bool half : {false, true}) test_maxima(isa, dim, num_x, half);
    test_products(isa);
    std::printf("%s ", isa.c_str());
  }
  test_errors();
  std::printf("%ld checks, %d failures\n", checks, failures);
  return failures == 0 ? 0 : 1;
}

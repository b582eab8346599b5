// The core without Python: every kernel this machine has against a float64 oracle, and in int8 against exact integers.
// Also cross-compiled for Arm.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "lemur/checks.hpp"
#include "lemur/cpu.hpp"
#include "lemur/graph.hpp"
#include "lemur/int8.hpp"
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

// A token as int8.hpp says: codes of scale max |component| / 127, rounded half to even. The product of two float32
// numbers is exact in float64, so every compiler makes the same codes of it.
struct Codes {
  std::vector<int> codes;
  float scale = 1.0f;

  Codes(const float* token, std::int64_t dim) : codes(dim) {
    float largest = 0;
    for (std::int64_t k = 0; k < dim; ++k) largest = std::max(largest, std::fabs(token[k]));
    if (largest <= 1e-30f) return;
    scale = largest / 127.0f;
    const float inverse = 127.0f / largest;
    for (std::int64_t k = 0; k < dim; ++k)
      codes[k] = static_cast<int>(std::nearbyint(static_cast<double>(token[k]) * inverse));
  }
};

std::vector<Codes> codes_of(const std::vector<float>& tokens, std::int64_t dim) {
  std::vector<Codes> out;
  for (std::size_t t = 0; t * dim < tokens.size(); ++t) out.emplace_back(tokens.data() + t * dim, dim);
  return out;
}

// One number for all int8 results: runs on different processors are compared by it.
std::uint64_t digest = 14695981039346656037u;  // FNV-1a

void add_to_digest(const std::vector<float>& values) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
  for (std::size_t i = 0; i < values.size() * sizeof(float); ++i) digest = (digest ^ bytes[i]) * 1099511628211u;
}

// One document at a time, from codes that are kept: expected is (num_documents, num_x).
void test_kept_codes(const std::string& name, const lemur::TokenView& view, const std::vector<std::int64_t>& offsets,
                     const std::vector<float>& x, std::int64_t num_x, const std::vector<float>& expected) {
  const std::int64_t count = static_cast<std::int64_t>(offsets.size()) - 1, stride = lemur::int8_stride(view.dim);
  std::vector<std::int8_t> kept(offsets.back() * stride);
  std::vector<float> scales(offsets.back());
  std::vector<std::int32_t> sums(offsets.back());
  lemur::quantise_tokens(view, {kept.data(), scales.data(), sums.data()}, 2);
  const lemur::Int8Panels panels(x.data(), num_x, view.dim);
  std::vector<float> best(panels.num_panels() * lemur::kPanelTokens);
  for (std::int64_t l = 0; l < count; ++l) {
    const std::int64_t row = offsets[l];
    lemur::active_kernels().int8_document(panels.panel(0), panels.num_panels(),
                                          {kept.data() + row * stride, scales.data() + row, sums.data() + row,
                                           offsets[l + 1] - row, view.dim, stride, nullptr, 0},
                                          best.data());
    bool same = true;
    for (std::int64_t i = 0; i < num_x; ++i) same &= best[i] * panels.scale(i) == expected[l * num_x + i];
    check(same, name + " one document");
  }
}

// The same bits as the oracle, and so the same on every instruction set, in both layouts.
void test_int8(const std::vector<std::int64_t>& lengths, std::int64_t dim, std::int64_t num_x, bool half) {
  std::mt19937 random(static_cast<unsigned>(dim * 1000 + num_x));  // no distribution: those differ between libraries
  const auto draw = [&] { return static_cast<int>(random() % 201) - 100; };
  std::vector<std::int64_t> offsets{0};
  for (const auto n : lengths) offsets.push_back(offsets.back() + n);
  const std::int64_t count = static_cast<std::int64_t>(lengths.size());
  std::vector<float> tokens(offsets.back() * dim), x(num_x * dim);
  std::vector<std::uint16_t> half_tokens(tokens.size());
  for (std::int64_t t = 0; t < offsets.back(); ++t) {
    const bool zeros = t % 9 == 4, nearly_zeros = t % 9 == 7;  // all components 0, or below 1e-30
    const int exponent = nearly_zeros ? -110 : static_cast<int>(t % 100) - 60;
    for (std::int64_t k = 0; k < dim; ++k) {
      const int value = zeros ? 0 : draw();
      tokens[t * dim + k] = half ? static_cast<float>(value) : std::ldexp(static_cast<float>(value) / 7.0f, exponent);
      half_tokens[t * dim + k] = half_of(value);
    }
  }
  for (std::int64_t i = 0; i < num_x * dim; ++i) x[i] = i / dim % 16 == 5 ? 0.0f : static_cast<float>(draw()) / 7.0f;
  const lemur::TokenView view{half ? static_cast<const void*>(half_tokens.data()) : tokens.data(),
                              half ? lemur::TokenType::kFloat16 : lemur::TokenType::kFloat32, offsets.back(), dim};
  const lemur::DocumentsView documents(
      {{view, offsets.data(), 5}, {view, offsets.data() + 5, 0}, {view, offsets.data() + 5, count - 5}});

  const std::vector<Codes> x_codes = codes_of(x, dim), codes = codes_of(tokens, dim);
  std::vector<float> expected(num_x * count), transposed(num_x * count);
  for (std::int64_t i = 0; i < num_x; ++i)
    for (std::int64_t l = 0; l < count; ++l) {
      float best = -std::numeric_limits<float>::infinity();
      for (std::int64_t t = offsets[l]; t < offsets[l + 1]; ++t) {
        std::int64_t sum = 0;
        for (std::int64_t k = 0; k < dim; ++k) sum += x_codes[i].codes[k] * codes[t].codes[k];
        best = std::max(best, static_cast<float>(sum) * codes[t].scale);
      }
      expected[i * count + l] = transposed[l * num_x + i] = best * x_codes[i].scale;
    }
  add_to_digest(expected);

  const std::size_t bytes = expected.size() * sizeof(float);
  for (const std::string& isa : lemur::supported_isas()) {
    lemur::force_isa(isa);
    std::vector<float> got(expected.size());
    const std::string name = isa + " int8 dim " + std::to_string(dim) + " x " + std::to_string(num_x) +
                             (half ? " half" : "") + " of " + std::to_string(count);
    lemur::token_maxima(x.data(), num_x, dim, documents, {got.data(), count, 1}, lemur::Precision::kInt8, 1);
    check(std::memcmp(got.data(), expected.data(), bytes) == 0, name);
    lemur::token_maxima(x.data(), num_x, dim, documents, {got.data(), 1, num_x}, lemur::Precision::kInt8, 3);
    check(std::memcmp(got.data(), transposed.data(), bytes) == 0, name + " by document");
    test_kept_codes(name, view, offsets, x, num_x, transposed);
  }
}

// Rows on a line, each linked to its neighbours: a walk from row 0 must reach the best, and pass through excluded rows.
void test_graph(const std::string& isa) {
  const std::int64_t size = 5000, dim = 70, stride = lemur::int8_stride(dim);
  std::vector<std::int8_t> codes(size * stride);
  std::vector<float> scales(size), vector(dim);
  std::vector<std::int32_t> links(size * 3, -1);
  for (std::int64_t r = 0; r < size; ++r) {
    for (std::int64_t k = 0; k < dim; ++k)
      vector[k] = std::cos(0.0005f * static_cast<float>(r) * static_cast<float>(k % 3 + 1));
    scales[r] = lemur::quantise(vector.data(), dim, codes.data() + r * stride);
    if (r > 0) links[r * 3] = static_cast<std::int32_t>(r - 1);
    if (r + 1 < size) links[r * 3 + (r > 0)] = static_cast<std::int32_t>(r + 1);
  }
  const std::int32_t entries[] = {static_cast<std::int32_t>(size / 2)};
  std::vector<std::uint8_t> excluded(size, 0);
  for (std::int64_t r = 0; r < size; r += 2) excluded[r] = 1;
  lemur::CandidateSearch search;
  const lemur::CodedVectors all = {codes.data(), scales.data(), size, dim, stride};
  const lemur::CodedVectors none = {codes.data(), scales.data(), 0, dim, stride};
  search.num_candidates = 20;
  std::vector<float> queries(2 * dim, 1.0f);
  for (std::int64_t k = 0; k < dim; ++k) queries[dim + k] = k % 3 == 0 ? 1.0f : -0.5f;
  std::vector<std::int64_t> scanned(40), walked(40);
  for (const bool with_excluded : {false, true}) {
    search.excluded = with_excluded ? excluded.data() : nullptr;
    search.num_excluded = with_excluded ? size / 2 : 0;
    search.nodes = none;
    search.recent = all;
    search.graph = {};
    search.run(queries.data(), 2, scanned.data(), 2);
    search.nodes = all;
    search.recent = none;
    search.graph = {links.data(), size, 3, entries, 1};
    search.beam = 40;
    search.run(queries.data(), 2, walked.data(), 2);
    for (std::int64_t i = 0; i < 20; ++i) {
      check(walked[i] == scanned[i], isa + " walk");
      check(!with_excluded || scanned[i] % 2 == 1, isa + " excluded");
    }
  }
}

void test_activations(const std::string& isa) {
  const lemur::KernelTable& kernels = lemur::active_kernels();
  std::vector<float> x(2001), y;
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = 0.02f * (static_cast<float>(i) - 1000.0f);
  const double softest = 2e-6;
  const auto compare = [&](lemur::Activation activation, const char* name, auto&& exact) {
    y = x;
    kernels.activate(y.data(), static_cast<std::int64_t>(y.size()), activation, 3.0f);
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double v = x[i], expected = 3.0 * exact(v);
      check(std::abs(y[i] - expected) <= softest * (1.0 + std::abs(expected)), isa + " " + name);
    }
  };
  compare(lemur::Activation::kGelu, "gelu", [](double v) { return 0.5 * v * (1.0 + std::erf(v / std::sqrt(2.0))); });
  compare(lemur::Activation::kRelu, "relu", [](double v) { return std::max(v, 0.0); });
  compare(lemur::Activation::kSilu, "silu", [](double v) { return v / (1.0 + std::exp(-v)); });
  compare(lemur::Activation::kMish, "mish", [](double v) { return v * std::tanh(std::log1p(std::exp(v))); });
  y = x;
  kernels.normalise(y.data(), static_cast<std::int64_t>(y.size()), nullptr, nullptr, 1e-5f);
  double mean = 0, square = 0;
  for (const float v : y) mean += v, square += static_cast<double>(v) * v;
  check(std::abs(mean) < 1e-2 && std::abs(square / static_cast<double>(y.size()) - 1) < 1e-4, isa + " normalise");
}

void test_products(const std::string& isa) {
  const std::int64_t num_a = 50, depth = 600, num_b = 35;
  std::mt19937 random(5);
  std::uniform_int_distribution<int> draw(-8, 8);  // small integers: every order of summation is exact
  std::vector<float> a(num_a * depth), b(depth * num_b);
  for (auto& value : a) value = static_cast<float>(draw(random));
  for (auto& value : b) value = static_cast<float>(draw(random));
  std::vector<double> out(num_a * num_b);
  lemur::products(a.data(), num_a, lemur::Columns(b.data(), num_b, depth, 2), out.data(), 2);
  for (std::int64_t j = 0; j < num_a; ++j)
    for (std::int64_t i = 0; i < num_b; ++i) {
      double sum = 0;
      for (std::int64_t k = 0; k < depth; ++k) sum += static_cast<double>(a[j * depth + k]) * b[k * num_b + i];
      check(out[j * num_b + i] == sum, isa + " products");
    }
}

// Small codes by every instruction set: whole numbers, so that all decode the same rows and sums, what overflows too.
void test_small_rows(int bits, std::int64_t dim) {
  constexpr std::int64_t kRows = 37, kCentroids = 5;
  const std::int64_t num_bytes = lemur::small_bytes(dim, bits),
                     stride = lemur::int8_stride(lemur::small_columns(dim, bits));
  std::vector<std::int8_t> centroids(kCentroids * stride, 0);
  for (std::int64_t c = 0; c < kCentroids; ++c)
    for (std::int64_t k = 0; k < dim; ++k)
      centroids[c * stride + k] = static_cast<std::int8_t>((c * 89 + k * 37) % 255 - 127);
  std::int16_t levels[16] = {};
  for (int i = 0; i < 1 << bits; ++i) levels[i] = static_cast<std::int16_t>(8 * (-127 + 254 * i / ((1 << bits) - 1)));
  std::vector<std::uint8_t> codes(kRows * num_bytes);
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>(i * 151 + i / 7);
  std::vector<std::uint16_t> ids(kRows);
  std::vector<std::int16_t> scales(kRows);
  for (std::int64_t r = 0; r < kRows; ++r) {
    ids[r] = static_cast<std::uint16_t>(r % kCentroids);
    scales[r] = static_cast<std::int16_t>(r == 0 ? 0 : r == 1 ? 32767 : r * 613);
  }
  const lemur::SmallBook book{bits, dim, num_bytes, kCentroids, stride, centroids.data(), levels};
  lemur::SmallCodes tokens{codes.data(), ids.data(), scales.data(), kRows};
  std::vector<std::int8_t> expected;
  std::vector<std::int32_t> expected_sums;
  for (const std::string& isa : lemur::supported_isas()) {
    lemur::force_isa(isa);
    std::vector<std::int8_t> rows(kRows * stride, 99);
    std::vector<std::int32_t> sums(kRows, 99);
    check(lemur::active_kernels().small_rows(book, tokens, rows.data(), sums.data()), isa + " decodes small codes");
    for (std::int64_t r = 0; r < kRows; ++r) {
      std::int32_t sum = 0;
      for (std::int64_t k = 0; k < stride; ++k) sum += rows[r * stride + k];
      check(sum == sums[r], isa + " sums a decoded row");
    }
    if (expected.empty()) expected = rows, expected_sums = sums;
    check(rows == expected && sums == expected_sums, isa + " decodes the same rows");
    ids[kRows - 1] = kCentroids;
    check(!lemur::active_kernels().small_rows(book, tokens, rows.data(), sums.data()),
          isa + " refuses other centroids");
    ids[kRows - 1] = 0;
    tokens.num_rows = 0;
    check(lemur::active_kernels().small_rows(book, tokens, nullptr, nullptr), isa + " decodes no rows");
    tokens.num_rows = kRows;
    ids[kRows - 1] = static_cast<std::uint16_t>((kRows - 1) % kCentroids);
  }
}

void test_first_bad_row() {
  const float largest = 1e15f, infinity = std::numeric_limits<float>::infinity();
  const std::int64_t rows = 5, dim = 37;
  for (const float bad : {std::nextafter(largest, infinity), infinity, std::numeric_limits<float>::quiet_NaN()})
    for (const float sign : {1.0f, -1.0f})
      for (const std::int64_t at : {std::int64_t{-1}, std::int64_t{0}, 2 * dim + 36, 5 * dim - 1}) {
        std::vector<float> tokens(rows * dim, sign * largest);
        if (at >= 0) tokens[at] = sign * bad;
        const auto row = lemur::first_bad_row({tokens.data(), lemur::TokenType::kFloat32, rows, dim});
        check(row.value_or(-1) == (at < 0 ? -1 : at / dim), "first bad row");
      }
  for (const int bad : {0x7c00, 0xfc00, 0x7e01})  // infinities and a NaN; 0x7bff is the largest number
    for (const std::int64_t at : {std::int64_t{-1}, std::int64_t{0}, 3 * dim + 5}) {
      std::vector<std::uint16_t> tokens(rows * dim, 0x7bff);
      if (at >= 0) tokens[at] = static_cast<std::uint16_t>(bad);
      const auto row = lemur::first_bad_row({tokens.data(), lemur::TokenType::kFloat16, rows, dim});
      check(row.value_or(-1) == (at < 0 ? -1 : at / dim), "first bad row of halves");
    }
  check(!lemur::first_bad_row({nullptr, lemur::TokenType::kFloat32, 0, dim}), "first bad row of none");
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
  for (const auto precision : {lemur::Precision::kFloat32, lemur::Precision::kInt8})
    check_throws<std::invalid_argument>(
        [&] { lemur::token_maxima(tokens, 1, 3, documents, {out, 2, 1}, precision, 1); }, "other dim");
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
    test_graph(isa);
    test_activations(isa);
    std::printf("%s ", isa.c_str());
  }
  for (const std::int64_t dim : {1, 3, 8, 17, 64, 128, 131})
    for (const std::int64_t num_x : {1, 15, 16, 17, 32, 40})
      for (const bool half : {false, true})
        test_int8({0, 1, 2, 3, 0, 0, 5, 6, 7, 11, 12, 13, 31, 32, 33, 0, 96, 97, 150, 0}, dim, num_x, half);
  // more tokens than one thread takes at once, and documents without any token at all
  test_int8({700, 1500, 0, 2100, 1, 999, 2047, 33}, 19, 33, false);
  test_int8({0, 0, 0, 0, 0, 0}, 5, 3, false);
  for (const int bits : {1, 2, 3, 4})
    for (const std::int64_t dim : {1, 24, 96, 128, 130, 256, 384, 1024}) test_small_rows(bits, dim);
  std::printf("int8 digest %016llx, ", static_cast<unsigned long long>(digest));
  test_first_bad_row();
  test_errors();
  std::printf("%ld checks, %d failures\n", checks, failures);
  return failures == 0 ? 0 : 1;
}

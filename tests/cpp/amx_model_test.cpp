// The kernel for AMX tiles (amx_int8.hpp) on a model of the tile unit, so that it is tested where there is none: the
// same bits as the scalar kernel, no read outside what Int8Run promises, no tile used without a configuration.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "lemur/int8.hpp"
#include "lemur/kernels/amx_int8.hpp"

namespace {

int failures = 0;
long checks = 0;

void check(bool good, const std::string& what) {
  ++checks;
  if (!good && ++failures <= 20) std::printf("FAILED %s\n", what.c_str());
}

// Eight tiles of 16 rows of 64 bytes, with the operations of Intel's manual at that shape. Anything that the processor
// would answer with an exception, or that reads outside the test's buffers, throws std::logic_error.
class TileModel {
 public:
  struct Buffer {
    const std::int8_t *begin, *end;
  };
  static inline std::vector<Buffer> readable;

  static bool configured() { return configured_; }
  static void configure() {
    if (configured_) throw std::logic_error("configured twice");
    configured_ = true;
    std::memset(tiles_, 0, sizeof(tiles_));
  }
  static void release() { configured_ = false; }

  template <int t>
  static void zero() {
    std::memset(tile(t), 0, kTileBytes);
  }

  template <int t>
  static void load(const std::int8_t* p, std::int64_t stride_bytes) {
    const std::int8_t* end = p + (kRows - 1) * stride_bytes + kRowBytes;
    if (std::none_of(readable.begin(), readable.end(), [&](Buffer b) { return b.begin <= p && end <= b.end; }))
      throw std::logic_error("load outside the buffers");
    for (int row = 0; row < kRows; ++row) std::memcpy(tile(t) + row * kRowBytes, p + row * stride_bytes, kRowBytes);
  }

  template <int t>
  static void store(std::int32_t* p, std::int64_t stride_bytes) {
    char* out = reinterpret_cast<char*>(p);
    for (int row = 0; row < kRows; ++row) std::memcpy(out + row * stride_bytes, tile(t) + row * kRowBytes, kRowBytes);
  }

  template <int sum>
  static void dot() {
    tdpbssd(sum, sum % 2 == 0 ? 4 : 5, sum < 2 ? 6 : 7);
  }

 private:
  static constexpr int kRows = 16, kRowBytes = 64, kTileBytes = kRows * kRowBytes;

  static std::int8_t* tile(int t) {
    if (!configured_) throw std::logic_error("tile used without a configuration");
    return tiles_[t];
  }

  // 32-bit element n of row m of `destination` grows by the products of the four bytes of element k of row m of `a`
  // with those of element n of row k of `b`, for all k; it wraps around.
  static void tdpbssd(int destination, int a, int b) {
    for (int m = 0; m < kRows; ++m)
      for (int k = 0; k < kRowBytes / 4; ++k)
        for (int n = 0; n < kRowBytes / 4; ++n) {
          std::int8_t* element = tile(destination) + m * kRowBytes + 4 * n;
          std::uint32_t value;
          std::memcpy(&value, element, 4);
          for (int i = 0; i < 4; ++i)
            value +=
                static_cast<std::uint32_t>(tile(a)[m * kRowBytes + 4 * k + i] * tile(b)[k * kRowBytes + 4 * n + i]);
          std::memcpy(element, &value, 4);
        }
  }

  static inline bool configured_ = false;
  static inline std::int8_t tiles_[8][kTileBytes];
};

// The float32 end of the kernel with as many lanes as AVX-512 has, in plain C++.
struct PlainFloats {
  static constexpr int lanes = 16;
  struct floats {
    float lane[lanes];
  };
  struct sums {
    std::int32_t lane[lanes];
  };
  static sums load_sums(const std::int32_t* p) {
    sums out;
    std::copy_n(p, lanes, out.lane);
    return out;
  }
  static floats lowest() {
    floats out;
    std::fill_n(out.lane, lanes, -std::numeric_limits<float>::infinity());
    return out;
  }
  static floats scale(const sums& a, float s) {
    floats out;
    for (int i = 0; i < lanes; ++i) out.lane[i] = static_cast<float>(a.lane[i]) * s;
    return out;
  }
  static floats max(const floats& a, const floats& b) {
    floats out;
    for (int i = 0; i < lanes; ++i) out.lane[i] = std::max(a.lane[i], b.lane[i]);
    return out;
  }
  static void store(float* p, const floats& a) { std::copy_n(a.lane, lanes, p); }
};

std::vector<float> random_tokens(std::int64_t num_tokens, std::int64_t dim, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<float> tokens(num_tokens * dim);
  for (std::int64_t i = 0; i < num_tokens * dim; ++i)
    tokens[i] = i / dim % 7 == 3 ? 0.0f : static_cast<float>(random()) - 2147483648.0f;  // some tokens are zeros
  return tokens;
}

void test_maxima(std::int64_t dim, std::int64_t num_panels, const std::vector<std::int64_t>& lengths,
                 std::int64_t first_document) {
  std::vector<std::int64_t> offsets{0};
  for (const auto n : lengths) offsets.push_back(offsets.back() + n);
  const std::int64_t num_rows = offsets.back(), num_tokens = num_panels * lemur::kPanelTokens - 3;
  lemur::Int8Rows rows(dim);
  rows.append(random_tokens(num_rows, dim, 1).data(), num_rows);
  const lemur::Int8Panels panels(random_tokens(num_tokens, dim, 2).data(), num_tokens, dim);
  const auto num_documents = static_cast<std::int64_t>(lengths.size()) - first_document;
  const lemur::Int8Run run = rows.run(offsets.data() + first_document, num_documents);
  TileModel::readable = {{run.codes, run.codes + (num_rows + lemur::kInt8Padding) * run.stride},
                         {panels.panel(0), panels.panel(num_panels)}};

  // NaN at first, so that a value never written is seen
  std::vector<float> got(num_documents * num_panels * lemur::kPanelTokens, std::numeric_limits<float>::quiet_NaN());
  std::vector<float> expected = got;
  const std::string name = "dim " + std::to_string(dim) + ", panels " + std::to_string(num_panels) + ", rows " +
                           std::to_string(num_rows) + " from document " + std::to_string(first_document);
  try {
    lemur::amx_int8_maxima<TileModel, PlainFloats>(panels.panel(0), num_panels, run, got.data());
  } catch (const std::logic_error& error) {
    check(false, name + ": " + error.what());
  }
  lemur::kScalarKernels.int8_maxima(panels.panel(0), num_panels, run, expected.data());
  check(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0, name);
  check(!TileModel::configured(), name + ": tiles left configured");
  TileModel::release();
}

template <class Call>
void check_refused(const Call& call, const std::string& what) {
  bool refused = false;
  try {
    call();
  } catch (const std::logic_error&) {
    refused = true;
  }
  check(refused, what);
}

// The model itself: what it refuses, and one product by hand.
void test_model() {
  std::int8_t bytes[2 * 16 * 64] = {};
  std::int32_t out[16 * 16];
  TileModel::readable = {{bytes, bytes + 16 * 64}};
  for (const std::string when : {"before configure", "after release"}) {
    check_refused([] { TileModel::zero<0>(); }, "zero " + when);
    check_refused([&] { TileModel::load<4>(bytes, 64); }, "load " + when);
    check_refused([&] { TileModel::store<0>(out, 64); }, "store " + when);
    check_refused([] { TileModel::dot<0>(); }, "dot " + when);
    TileModel::configure();
    check_refused([] { TileModel::configure(); }, "configure twice");
    check_refused([&] { TileModel::load<4>(bytes + 1, 64); }, "load outside the buffers");
    TileModel::release();
  }
  TileModel::configure();
  for (int i = 0; i < 4; ++i) bytes[2 * 64 + 4 * 5 + i] = static_cast<std::int8_t>(-120 - i);  // row 2, element 5
  TileModel::load<4>(bytes, 64);
  std::memset(bytes, 0, sizeof(bytes));
  for (int i = 0; i < 4; ++i) bytes[5 * 64 + 4 * 9 + i] = static_cast<std::int8_t>(100 + i);  // row 5, element 9
  TileModel::load<6>(bytes, 64);
  TileModel::dot<0>();
  TileModel::dot<0>();
  TileModel::store<0>(out, 64);
  TileModel::release();
  const std::int32_t product = -120 * 100 - 121 * 101 - 122 * 102 - 123 * 103;
  for (int i = 0; i < 16 * 16; ++i) check(out[i] == (i == 2 * 16 + 9 ? 2 * product : 0), "product of tiles");
}

}  // namespace

int main() {
  test_model();
  const std::vector<std::int64_t> lengths{0, 1, 2, 0, 0, 5, 15, 16, 17, 31, 32, 33, 64, 97, 0};
  for (const std::int64_t dim : {1, 3, 8, 17, 64, 65, 128, 131})
    for (const std::int64_t num_panels : {1, 2, 3, 4})
      for (const std::int64_t first_document : {0, 6}) test_maxima(dim, num_panels, lengths, first_document);
  for (const std::int64_t num_rows : {0, 1, 31, 32, 33, 64}) test_maxima(64, 2, {num_rows}, 0);
  std::printf("%ld checks, %d failures\n", checks, failures);
  return failures == 0 ? 0 : 1;
}

// Any processor. Plain C++ at the compiler's baseline.
#include "lemur/kernels/feature_rows.hpp"
#include "lemur/kernels/half.hpp"
#include "lemur/kernels/inner_product.hpp"
#include "lemur/kernels/int8_product.hpp"
#include "lemur/kernels/look_rows.hpp"
#include "lemur/kernels/small_rows.hpp"

namespace lemur {
namespace {

struct Scalar {
  using type = float;
  static constexpr int lanes = 1;
  static constexpr int tile_panels = 1;
  static constexpr int tile_tokens = 1;
  static float zero() { return 0.0f; }
  static float load(const float* p) { return *p; }
  static float broadcast(const float* p) { return *p; }
  static float fma(float a, float b, float c) { return a * b + c; }
  static float max(float a, float b) { return a > b ? a : b; }
  static void store(float* p, float a) { *p = a; }
};

struct ScalarInt8 {
  struct codes {
    const std::int8_t* p;  // a group of four
  };
  using sums = std::int32_t;
  using floats = float;
  static constexpr int lanes = 1;
  static constexpr std::int32_t offset = 0;
  static constexpr int tile_panels = 1;
  static constexpr int tile_tokens = 1;
  static codes load_signed(const std::int8_t* p) { return {p}; }
  static codes load(const std::int8_t* p) { return {p}; }
  static codes broadcast(const std::int8_t* p) { return {p}; }
  static std::int32_t start(std::int32_t) { return 0; }
  static std::int32_t start_first(std::int32_t sum) { return sum; }
  static std::int32_t total(std::int32_t a) { return a; }
  static std::int32_t dot(std::int32_t sum, codes q, codes d) {
    for (int k = 0; k < 4; ++k) sum += q.p[k] * d.p[k];
    return sum;
  }
  static std::int32_t load_sums(const std::int32_t* p) { return *p; }
  static void store_sums(std::int32_t* p, std::int32_t a) { *p = a; }
  static float load_floats(const float* p) { return *p; }
  static float lowest() { return negative_infinity(); }
  static float scale(std::int32_t a, float s) { return static_cast<float>(a) * s; }
  static float max(float a, float b) { return a > b ? a : b; }
  static void store(float* p, float a) { *p = a; }
};

struct Byte {
  using type = std::uint8_t;
  using half = Byte;
  static constexpr int lanes = 1;
  static std::uint8_t zero() { return 0; }
  static std::uint8_t load(const std::uint8_t* p) { return *p; }
  static std::uint8_t max(std::uint8_t a, std::uint8_t b) { return a > b ? a : b; }
  static void store(std::uint8_t* p, std::uint8_t a) { *p = a; }
};

struct ScalarCodes {
  using type = std::int32_t;
  using half = ScalarCodes;
  struct levels {
    std::int8_t of[16];
  };
  using sums = std::int32_t;
  static constexpr std::int64_t lanes = 1;
  static std::int32_t load(const std::uint8_t* p) { return *p; }
  static std::int32_t load(const std::int8_t* p) { return *p; }
  static void store(std::int8_t* p, std::int32_t a) { *p = static_cast<std::int8_t>(a); }
  static std::int32_t within(std::int32_t a) { return a < -128 ? -128 : a > 127 ? 127 : a; }
  static levels table(const std::int16_t* levels, std::int16_t scale) {
    ScalarCodes::levels out;
    for (int i = 0; i < 16; ++i)
      out.of[i] = static_cast<std::int8_t>(within((static_cast<std::int32_t>(levels[i]) * scale + 0x4000) >> 15));
    return out;
  }
  template <int kBits>
  static std::int32_t level(const levels& levels, std::int32_t packed) {
    return levels.of[packed & ((1 << kBits) - 1)];
  }
  template <int kBits>
  static std::int32_t shift(std::int32_t packed) {
    return packed >> kBits;
  }
  static std::int32_t joined(std::int32_t low, int first, std::int32_t high, int third) {
    return (low >> first & 3) | ((high >> third & 1) << 2);
  }
  static std::int32_t add(std::int32_t a, std::int32_t b) { return within(a + b); }
  static std::int32_t no_sum() { return 0; }
  static std::int32_t add_sum(std::int32_t sum, std::int32_t a) { return sum + a; }
  static std::int32_t total(std::int32_t sum) { return sum; }
};

void widen(const std::uint16_t* half, std::int64_t size, float* out) {
  for (std::int64_t i = 0; i < size; ++i) out[i] = half_to_float(half[i]);
}

}  // namespace

const KernelTable kScalarKernels = {"scalar",
                                    update_maxima<Scalar>,
                                    products<Scalar>,
                                    int8_maxima<ScalarInt8>,
                                    int8_document<ScalarInt8>,
                                    int8_dots<ScalarInt8>,
                                    activate,
                                    normalise,
                                    widen,
                                    as_bytes,
                                    update_nearest,
                                    byte_maxima<Byte>,
                                    match_sums,
                                    small_rows<ScalarCodes>};

}  // namespace lemur

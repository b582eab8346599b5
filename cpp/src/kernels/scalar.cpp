// Any processor. Plain C++ at the compiler's baseline.
#include "lemur/kernels/half.hpp"
#include "lemur/kernels/inner_product.hpp"

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

void widen(const std::uint16_t* half, std::int64_t size, float* out) {
  for (std::int64_t i = 0; i < size; ++i) out[i] = half_to_float(half[i]);
}

}  // namespace

const KernelTable kScalarKernels = {"scalar", update_maxima<Scalar>, products<Scalar>, widen};

}  // namespace lemur

#include "array_args.hpp"

#include <algorithm>

#include "lemur/kernels/table.hpp"

namespace lemur_bindings {

namespace {

constexpr std::int64_t kMaxDim = std::int64_t{1} << 24;
constexpr std::int64_t kMaxThreads = 4096;  // more than any machine has, and few enough to be counted with

std::int64_t checked_dim(std::size_t dim) {
  if (dim < 1 || dim > static_cast<std::size_t>(kMaxDim)) throw nb::value_error("rows must have 1 to 2^24 components");
  return static_cast<std::int64_t>(dim);
}

}  // namespace

std::int64_t coded_dim(std::int64_t dim) {
  if (dim < 1 || dim > lemur::kMaxInt8Dim) throw nb::value_error("int8 codes have 1 to 131,072 components");
  return dim;
}

int threads(std::int64_t num_threads) {
  if (num_threads < 1) throw nb::value_error("num_threads must be at least 1");
  return static_cast<int>(std::min(num_threads, kMaxThreads));
}

lemur::TokenView token_view(const FloatMatrix& tokens) {
  return {tokens.data(), lemur::TokenType::kFloat32, static_cast<std::int64_t>(tokens.shape(0)),
          checked_dim(tokens.shape(1))};
}

lemur::TokenView token_view(const AnyMatrix& tokens) {
  lemur::TokenType type;
  if (tokens.dtype() == nb::dtype<float>()) {
    type = lemur::TokenType::kFloat32;
  } else if (tokens.dtype().code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float) &&
             tokens.dtype().bits == 16) {
    type = lemur::TokenType::kFloat16;
  } else {
    throw nb::type_error("tokens must be float32 or float16");
  }
  return {tokens.data(), type, static_cast<std::int64_t>(tokens.shape(0)), checked_dim(tokens.shape(1))};
}

lemur::RaggedView ragged_view(const lemur::TokenView& tokens, const Int64Vector& offsets) {
  if (offsets.shape(0) < 1) throw nb::value_error("offsets must have at least one element");
  return {tokens, offsets.data(), static_cast<std::int64_t>(offsets.shape(0)) - 1};
}

}  // namespace lemur_bindings

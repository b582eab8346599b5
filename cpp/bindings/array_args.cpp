#include "array_args.hpp"

namespace lemur_bindings {

lemur::TokenView token_view(const FloatMatrix& tokens) {
  return {tokens.data(), lemur::TokenType::kFloat32, static_cast<std::int64_t>(tokens.shape(0)),
          static_cast<std::int64_t>(tokens.shape(1))};
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
  return {tokens.data(), type, static_cast<std::int64_t>(tokens.shape(0)), static_cast<std::int64_t>(tokens.shape(1))};
}

lemur::RaggedView ragged_view(const lemur::TokenView& tokens, const Int64Vector& offsets) {
  if (offsets.shape(0) < 1) throw nb::value_error("offsets must have at least one element");
  return {tokens, offsets.data(), static_cast<std::int64_t>(offsets.shape(0)) - 1};
}

}  // namespace lemur_bindings

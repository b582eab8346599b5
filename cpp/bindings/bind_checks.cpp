// Checks of token values that would be slow in NumPy.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "array_args.hpp"

using namespace lemur_bindings;

namespace {

// True where any of `size` values has an all-ones exponent: infinity or NaN.
template <class Bits>
bool any_nonfinite(const void* values, std::int64_t size, Bits exponent) {
  const Bits* bits = static_cast<const Bits*>(values);
  Bits found = 0;
  for (std::int64_t i = 0; i < size; ++i) found |= static_cast<Bits>((bits[i] & exponent) == exponent);
  return found != 0;
}

bool row_is_nonfinite(const lemur::TokenView& tokens, std::int64_t row) {
  return tokens.type == lemur::TokenType::kFloat32
             ? any_nonfinite<std::uint32_t>(tokens.row(row), tokens.dim, 0x7f800000u)
             : any_nonfinite<std::uint16_t>(tokens.row(row), tokens.dim, std::uint16_t{0x7c00u});
}

nb::object first_nonfinite_row(const AnyMatrix& matrix) {
  const lemur::TokenView tokens = token_view(matrix);
  std::int64_t found = -1;
  {
    nb::gil_scoped_release release;
    for (std::int64_t row = 0; row < tokens.num_tokens && found < 0; ++row)
      if (row_is_nonfinite(tokens, row)) found = row;
  }
  return found < 0 ? nb::none() : nb::cast(found);
}

}  // namespace

void bind_checks(nb::module_& m) {
  m.def("first_nonfinite_row", &first_nonfinite_row, nb::arg("tokens").noconvert(),
        nb::sig("def first_nonfinite_row(tokens: numpy.typing.NDArray[typing.Any]) -> int | None"),
        "The first row of a (num_tokens, dim) float32 or float16 matrix with an infinity or a NaN, or None.");
}

// Checks of token values that would be slow in NumPy.
#include <cstdint>

#include "array_args.hpp"

using namespace lemur_bindings;

namespace {

// True where any of `size` values has a magnitude of at least `limit`, as bits without the sign; infinity and NaN have.
template <class Bits>
bool any_from(const void* values, std::int64_t size, Bits limit) {
  const Bits* bits = static_cast<const Bits*>(values);
  const Bits magnitude = static_cast<Bits>(~Bits{0}) >> 1;
  Bits found = 0;
  for (std::int64_t i = 0; i < size; ++i) found |= static_cast<Bits>((bits[i] & magnitude) >= limit);
  return found != 0;
}

// Products of values up to 1e15 cannot overflow float32, nor can their sums over a document's or query's tokens.
constexpr std::uint32_t kFloat1e15 = 0x58635fa9u;
constexpr std::uint16_t kHalfInfinity = 0x7c00u;

bool row_is_bad(const lemur::TokenView& tokens, std::int64_t row) {
  return tokens.type == lemur::TokenType::kFloat32
             ? any_from<std::uint32_t>(tokens.row(row), tokens.dim, kFloat1e15 + 1)
             : any_from<std::uint16_t>(tokens.row(row), tokens.dim, kHalfInfinity);
}

nb::object first_bad_row(const AnyMatrix& matrix) {
  const lemur::TokenView tokens = token_view(matrix);
  std::int64_t found = -1;
  {
    nb::gil_scoped_release release;
    for (std::int64_t row = 0; row < tokens.num_tokens && found < 0; ++row)
      if (row_is_bad(tokens, row)) found = row;
  }
  return found < 0 ? nb::none() : nb::cast(found);
}

}  // namespace

void bind_checks(nb::module_& m) {
  m.def("first_bad_row", &first_bad_row, nb::arg("tokens").noconvert(),
        nb::sig("def first_bad_row(tokens: numpy.typing.NDArray[typing.Any]) -> int | None"),
        "The first row of a (num_tokens, dim) float32 or float16 matrix with a NaN, an infinity or a value "
        "beyond 1e15, or None.");
}

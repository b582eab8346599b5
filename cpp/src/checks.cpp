#include "lemur/checks.hpp"

namespace lemur {
namespace {

// True where any of `size` values has a magnitude of at least `limit`, as bits without the sign; infinity and NaN have.
// It does not stop at the first, so that compilers make vectors of the loop.
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
constexpr std::uint16_t kHalfInfinity = 0x7c00u;  // every finite half is below 1e15

bool is_bad(const TokenView& tokens, std::int64_t row) {
  return tokens.type == TokenType::kFloat32 ? any_from<std::uint32_t>(tokens.row(row), tokens.dim, kFloat1e15 + 1)
                                            : any_from<std::uint16_t>(tokens.row(row), tokens.dim, kHalfInfinity);
}

}  // namespace

std::optional<std::int64_t> first_bad_row(const TokenView& tokens) {
  for (std::int64_t row = 0; row < tokens.num_tokens; ++row)
    if (is_bad(tokens, row)) return row;
  return std::nullopt;
}

std::int64_t num_zero_rows(const TokenView& tokens) {
  const bool is_float = tokens.type == TokenType::kFloat32;
  std::int64_t count = 0;
  for (std::int64_t row = 0; row < tokens.num_tokens; ++row)
    count += is_float ? !any_from<std::uint32_t>(tokens.row(row), tokens.dim, 1)
                      : !any_from<std::uint16_t>(tokens.row(row), tokens.dim, 1);
  return count;
}

}  // namespace lemur

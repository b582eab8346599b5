// Checks of token values that would be slow in NumPy.
#pragma once

#include <cstdint>
#include <optional>

#include "lemur/views.hpp"

namespace lemur {

// The first row with a NaN, an infinity or a magnitude beyond 1e15; none where all rows are good.
std::optional<std::int64_t> first_bad_row(const TokenView& tokens);

// How many rows hold nothing but zeros, as the padding of a batch does.
std::int64_t num_zero_rows(const TokenView& tokens);

}  // namespace lemur

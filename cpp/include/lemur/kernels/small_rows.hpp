// Small codes of tokens to int8 rows, written once over a vector of bytes C (lanes, half, load, store, table, level,
// shift, joined, add, no_sum, add_sum, total). Whole numbers throughout: every instruction set gives the same rows.
#pragma once

#include "lemur/kernels/table.hpp"

namespace lemur {
namespace {  // internal linkage: every instruction set keeps its own copy

// A row is its centroid's, and the level that each code names, times the token's scale. Part j of the codes is bits
// j * kBits and up of every byte; its levels lie one after the other in the row, so that no bits move across lanes.
template <class C, int kBits>
inline bool small_rows_of(const SmallBook& book, const SmallCodes& tokens, std::int8_t* rows, std::int32_t* sums) {
  constexpr int kParts = 8 / kBits;
  for (std::int64_t r = 0; r < tokens.num_rows; ++r) {
    if (tokens.centroids[r] >= book.num_centroids) return false;
    const typename C::levels levels = C::table(book.levels, tokens.scales[r]);
    const std::int8_t* centroid = book.centroids + tokens.centroids[r] * book.stride;
    const std::uint8_t* codes = tokens.codes + r * book.num_bytes;
    std::int8_t* row = rows + r * book.stride;
    typename C::sums sum = C::no_sum();
    for (std::int64_t i = 0; i < book.num_bytes; i += C::lanes) {
      typename C::type packed = C::load(codes + i);
      for (int j = 0; j < kParts; ++j) {
        const std::int64_t place = j * book.num_bytes + i;
        const typename C::type values = C::add(C::template level<kBits>(levels, packed), C::load(centroid + place));
        C::store(row + place, values);
        sum = C::add_sum(sum, values);
        packed = C::template shift<kBits>(packed);
      }
    }
    for (std::int64_t k = kParts * book.num_bytes; k < book.stride; ++k) row[k] = 0;
    sums[r] = C::total(sum);
  }
  return true;
}

// Three bits: the lower two as above, and the third after them, sixteen components at a time.
template <class C>
inline bool small_rows_of_three(const SmallBook& book, const SmallCodes& tokens, std::int8_t* rows,
                                std::int32_t* sums) {
  const std::int64_t num_low = small_bytes(book.dim, 2), num_high = small_bytes(book.dim, 1);
  for (std::int64_t r = 0; r < tokens.num_rows; ++r) {
    if (tokens.centroids[r] >= book.num_centroids) return false;
    const typename C::levels levels = C::table(book.levels, tokens.scales[r]);
    const std::int8_t* centroid = book.centroids + tokens.centroids[r] * book.stride;
    const std::uint8_t* low = tokens.codes + r * book.num_bytes;
    std::int8_t* row = rows + r * book.stride;
    typename C::sums sum = C::no_sum();
    std::int64_t place = 0, at = 0;  // of a component in the row, and in the bytes of the third bits
    int third = 0;
    for (int j = 0; j < 4; ++j)
      for (std::int64_t i = 0; i < num_low; i += C::lanes) {
        const typename C::type both = C::joined(C::load(low + i), 2 * j, C::load(low + num_low + at), third);
        const typename C::type values = C::add(C::template level<3>(levels, both), C::load(centroid + place));
        C::store(row + place, values);
        sum = C::add_sum(sum, values);
        place += C::lanes;
        at += C::lanes;
        if (at == num_high) at = 0, ++third;
      }
    for (std::int64_t k = 4 * num_low; k < book.stride; ++k) row[k] = 0;
    sums[r] = C::total(sum);
  }
  return true;
}

template <class C>
inline bool small_rows_by_bits(const SmallBook& book, const SmallCodes& tokens, std::int8_t* rows, std::int32_t* sums) {
  switch (book.bits) {
    case 1:
      return small_rows_of<C, 1>(book, tokens, rows, sums);
    case 2:
      return small_rows_of<C, 2>(book, tokens, rows, sums);
    default:
      return small_rows_of<C, 4>(book, tokens, rows, sums);
  }
}

template <class C>
bool small_rows(const SmallBook& book, const SmallCodes& tokens, std::int8_t* rows, std::int32_t* sums) {
  if constexpr (C::lanes > kSmallBytes) {
    if (book.bits == 3 || book.num_bytes % C::lanes != 0) return small_rows<typename C::half>(book, tokens, rows, sums);
  } else if (book.bits == 3) {
    return small_rows_of_three<C>(book, tokens, rows, sums);
  }
  return small_rows_by_bits<C>(book, tokens, rows, sums);
}

}  // namespace
}  // namespace lemur

// NumPy arrays as views of the core. Arrays must be C-contiguous already; nothing is copied here.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstddef>
#include <cstdint>
#include <limits>

#include "lemur/views.hpp"

namespace lemur_bindings {

namespace nb = nanobind;

// An argument, read where it lies.
template <class T, std::size_t kDims>
using ArrayArg = nb::ndarray<const T, nb::ndim<kDims>, nb::c_contig, nb::device::cpu>;

using FloatVector = ArrayArg<float, 1>;
using FloatMatrix = ArrayArg<float, 2>;
using Int32Vector = ArrayArg<std::int32_t, 1>;
using Int64Vector = ArrayArg<std::int64_t, 1>;
using Codes = ArrayArg<std::int8_t, 2>;  // (num_rows, int8_stride(dim))
using AnyMatrix = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// nb::value_error where rows have no components, or more than any product of theirs could be summed of.
lemur::TokenView token_view(const FloatMatrix& tokens);
lemur::TokenView token_view(const AnyMatrix& tokens);  // float32 or float16, else nb::type_error
std::int64_t coded_dim(std::int64_t dim);  // the same number; nb::value_error where int8 codes cannot have it
int threads(std::int64_t num_threads);     // of a call: at most kMaxThreads, and nb::value_error below 1
lemur::RaggedView ragged_view(const lemur::TokenView& tokens, const Int64Vector& offsets);

// A result, which owns its memory.
template <class T, std::size_t kDims>
using NewArray = nb::ndarray<nb::numpy, T, nb::ndim<kDims>>;

template <class T, class... Sizes>
NewArray<T, sizeof...(Sizes)> new_array(Sizes... sizes) {
  const std::size_t shape[] = {static_cast<std::size_t>(sizes)...};
  std::size_t size = 1;
  for (const std::size_t s : shape) {  // a product that wraps would be a small array, written to as a large one
    if (s != 0 && size > std::numeric_limits<std::ptrdiff_t>::max() / sizeof(T) / s)
      throw nb::value_error("the result would have more bytes than memory can number");
    size *= s;
  }
  T* data = new T[size];
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return NewArray<T, sizeof...(Sizes)>(data, sizeof...(Sizes), shape, owner);
}

}  // namespace lemur_bindings

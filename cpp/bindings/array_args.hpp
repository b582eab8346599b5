// NumPy arrays as views of the core. Arrays must be C-contiguous already; nothing is copied here.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "lemur/views.hpp"

namespace lemur_bindings {

namespace nb = nanobind;

using FloatMatrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Int64Vector = nb::ndarray<const std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using AnyMatrix = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

lemur::TokenView token_view(const FloatMatrix& tokens);
lemur::TokenView token_view(const AnyMatrix& tokens);  // float32 or float16, else nb::type_error
lemur::RaggedView ragged_view(const lemur::TokenView& tokens, const Int64Vector& offsets);

// A new (shape) array that owns its memory, float32 or int64.
template <class T, class... Sizes>
auto new_array(Sizes... sizes) {
  const std::size_t shape[] = {static_cast<std::size_t>(sizes)...};
  std::size_t size = 1;
  for (const std::size_t s : shape) size *= s;
  T* data = new T[size];
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return nb::ndarray<nb::numpy, T, nb::ndim<sizeof...(Sizes)>>(data, sizeof...(Sizes), shape, owner);
}

}  // namespace lemur_bindings

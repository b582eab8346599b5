#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "array_args.hpp"
#include "lemur/products.hpp"

using namespace lemur_bindings;

namespace {

nb::ndarray<nb::numpy, double, nb::ndim<2>> products(const FloatMatrix& a, const FloatMatrix& b, int num_threads) {
  if (a.shape(1) != b.shape(0)) throw nb::value_error("a must have as many columns as b has rows");
  auto out = new_array<double>(a.shape(0), b.shape(1));
  const auto num_a = static_cast<std::int64_t>(a.shape(0)), depth = static_cast<std::int64_t>(a.shape(1)),
             num_b = static_cast<std::int64_t>(b.shape(1));
  const float *a_data = a.data(), *b_data = b.data();
  double* data = out.data();
  nb::gil_scoped_release release;
  lemur::products(a_data, num_a, b_data, num_b, depth, data, num_threads);
  return out;
}

}  // namespace

void bind_products(nb::module_& m) {
  m.def("products", &products, nb::arg("a").noconvert(), nb::arg("b").noconvert(), nb::arg("num_threads"),
        "a @ b in float64, each element the same to the last bit whatever the shapes and threads.");
}

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "array_args.hpp"
#include "lemur/products.hpp"

using namespace lemur_bindings;

namespace {

NewArray<double, 2> products(const FloatMatrix& a, const lemur::Columns& b, std::int64_t num_threads) {
  if (static_cast<std::int64_t>(a.shape(1)) != b.depth())
    throw nb::value_error("a must have as many columns as b has rows");
  const auto num_a = static_cast<std::int64_t>(a.shape(0));
  auto out = new_array<double>(num_a, b.num_columns());
  const float* a_data = a.data();
  double* data = out.data();
  const int at_once = threads(num_threads);
  nb::gil_scoped_release release;
  lemur::products(a_data, num_a, b, data, at_once);
  return out;
}

}  // namespace

void bind_products(nb::module_& m) {
  nb::class_<lemur::Columns>(m, "Columns", "A copy of a float32 matrix (depth, num_columns), packed for products.")
      .def(
          "__init__",
          [](lemur::Columns* self, const FloatMatrix& matrix, std::int64_t num_threads) {
            const float* data = matrix.data();
            const auto depth = static_cast<std::int64_t>(matrix.shape(0)),
                       width = static_cast<std::int64_t>(matrix.shape(1));
            if (depth < 1 || width < 1) throw nb::value_error("a matrix must have rows and columns");
            const int at_once = threads(num_threads);
            nb::gil_scoped_release release;
            new (self) lemur::Columns(data, width, depth, at_once);
          },
          nb::arg("matrix").noconvert(), nb::arg("num_threads"));
  m.def("products", &products, nb::arg("a").noconvert(), nb::arg("b"), nb::arg("num_threads"),
        "a @ b in float64, each element the same to the last bit whatever the shapes and threads.");
}

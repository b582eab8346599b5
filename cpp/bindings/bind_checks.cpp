#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <cstdint>
#include <optional>

#include "array_args.hpp"
#include "lemur/checks.hpp"

using namespace lemur_bindings;

namespace {

std::optional<std::int64_t> first_bad_row(const AnyMatrix& matrix) {
  const lemur::TokenView tokens = token_view(matrix);
  nb::gil_scoped_release release;
  return lemur::first_bad_row(tokens);
}

std::int64_t num_zero_rows(const AnyMatrix& matrix) {
  const lemur::TokenView tokens = token_view(matrix);
  nb::gil_scoped_release release;
  return lemur::num_zero_rows(tokens);
}

}  // namespace

void bind_checks(nb::module_& m) {
  m.def("first_bad_row", &first_bad_row, nb::arg("tokens").noconvert(),
        nb::sig("def first_bad_row(tokens: numpy.typing.NDArray[typing.Any]) -> int | None"),
        "The first row of a (num_tokens, dim) float32 or float16 matrix with a NaN, an infinity or a value "
        "beyond 1e15, or None.");
  m.def("num_zero_rows", &num_zero_rows, nb::arg("tokens").noconvert(),
        nb::sig("def num_zero_rows(tokens: numpy.typing.NDArray[typing.Any]) -> int"),
        "How many rows of a (num_tokens, dim) float32 or float16 matrix hold nothing but zeros.");
}

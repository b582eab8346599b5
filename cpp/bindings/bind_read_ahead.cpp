#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <string>

#include "array_args.hpp"
#include "lemur/read_ahead.hpp"

using namespace lemur_bindings;

namespace {

using ByteVector = ArrayArg<std::uint8_t, 1>;

lemur::ReadAhead named(const std::string& how) {
  if (how == "as needed") return lemur::ReadAhead::kAsNeeded;
  if (how == "always") return lemur::ReadAhead::kAlways;
  if (how == "never") return lemur::ReadAhead::kNever;
  throw nb::value_error(("how must be 'as needed', 'always' or 'never', got '" + how + "'").c_str());
}

}  // namespace

void bind_read_ahead(nb::module_& m) {
  m.def(
      "read_ahead", [](const std::string& how) { lemur::set_read_ahead(named(how)); }, nb::arg("how"),
      "Whether searches of this process ask for pages before they read them: 'as needed', as they do from the start, "
      "'always' or 'never'. For tests and benchmarks.");
  m.def(
      "read_pages",
      [](const ByteVector& memory) {
        nb::gil_scoped_release release;
        lemur::read_pages(memory.data(), static_cast<std::int64_t>(memory.shape(0)));
      },
      nb::arg("memory").noconvert(), "Read all pages of some bytes now, from the disk where they are not in memory.");
  m.def(
      "pin_pages",
      [](const ByteVector& memory) {
        nb::gil_scoped_release release;
        return lemur::pin_pages(memory.data(), static_cast<std::int64_t>(memory.shape(0)));
      },
      nb::arg("memory").noconvert(),
      "The same, and keep them in memory as long as they are mapped: 0, or the error number of a system that refuses.");
}

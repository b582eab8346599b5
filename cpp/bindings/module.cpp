#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_codec(nb::module_& m);
void bind_cpu(nb::module_& m);
void bind_features(nb::module_& m);
void bind_graph(nb::module_& m);
void bind_look(nb::module_& m);
void bind_maxsim(nb::module_& m);
void bind_pooling(nb::module_& m);
void bind_products(nb::module_& m);
void bind_read_ahead(nb::module_& m);
void bind_checks(nb::module_& m);

NB_MODULE(_core, m) {
  m.doc() = "The C++ core of lemur_ann. Use lemur_ann.maxsim, which checks its arguments.";
  nb::set_leak_warnings(false);  // what is alive when the interpreter ends is nobody's mistake
  m.attr("version") = LEMUR_ANN_VERSION;
  bind_cpu(m);
  bind_features(m);
  bind_graph(m);
  bind_look(m);
  bind_codec(m);
  bind_maxsim(m);
  bind_pooling(m);
  bind_products(m);
  bind_read_ahead(m);
  bind_checks(m);
}

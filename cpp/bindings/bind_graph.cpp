#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "array_args.hpp"
#include "lemur/graph.hpp"
#include "lemur/int8.hpp"
#include "lemur/links.hpp"

using namespace lemur_bindings;

namespace {

using Int32Matrix = ArrayArg<std::int32_t, 2>;
using Flags = ArrayArg<bool, 1>;

constexpr float kLargestFloat = std::numeric_limits<float>::max();
constexpr std::int64_t kMaxDegree = 1 << 15;  // no node has more links

std::pair<NewArray<std::int8_t, 2>, NewArray<float, 1>> int8_codes(const FloatMatrix& vectors,
                                                                   std::int64_t num_threads) {
  const lemur::TokenView view = token_view(vectors);
  auto codes = new_array<std::int8_t>(view.num_tokens, lemur::int8_stride(coded_dim(view.dim)));
  auto scales = new_array<float>(view.num_tokens);
  std::vector<std::int32_t> sums(static_cast<std::size_t>(view.num_tokens));  // which a walk has no use for
  const lemur::CodedRows out{codes.data(), scales.data(), sums.data()};
  const int at_once = threads(num_threads);
  {
    nb::gil_scoped_release release;
    lemur::quantise_tokens(view, out, at_once);
  }
  return {codes, scales};
}

lemur::CodedVectors coded_vectors(const Codes& codes, const FloatVector& scales, std::int64_t dim) {
  const auto size = static_cast<std::int64_t>(codes.shape(0)), stride = static_cast<std::int64_t>(codes.shape(1));
  if (stride != lemur::int8_stride(coded_dim(dim))) throw nb::value_error("codes do not have the stride of dim");
  if (static_cast<std::int64_t>(scales.shape(0)) != size) throw nb::value_error("codes and scales differ in length");
  if (size > INT32_MAX) throw nb::value_error("more rows than an int32 can number");
  // A score that is not a number has no place in any order, and sorting goes by an order.
  bool is_finite = true;
  for (std::int64_t row = 0; row < size; ++row) is_finite &= std::fabs(scales.data()[row]) <= kLargestFloat;
  if (!is_finite) throw nb::value_error("a scale is not finite");
  return {codes.data(), scales.data(), size, dim, stride};
}

// The rows with the same codes, of `size`; none, or an empty array, means that there are none.
const std::int32_t* next_equal_or_null(const std::optional<Int32Vector>& next_equal, std::int64_t size) {
  if (!next_equal || next_equal->shape(0) == 0) return nullptr;
  if (static_cast<std::int64_t>(next_equal->shape(0)) != size)
    throw nb::value_error("codes and next_equal differ in length");
  return next_equal->data();
}

NewArray<std::int32_t, 2> better_links(std::int64_t dim, const Codes& codes, const FloatVector& scales,
                                       const Int32Matrix& links, const Int32Vector& entries, std::int64_t degree,
                                       std::int64_t beam, float alpha, std::int64_t num_threads,
                                       const std::optional<Int32Vector>& next_equal) {
  lemur::LinkChoice choice;
  choice.vectors = coded_vectors(codes, scales, dim);
  const std::int64_t size = choice.vectors.size, before = static_cast<std::int64_t>(links.shape(1));
  const auto known = static_cast<std::int64_t>(links.shape(0));
  if (known > size) throw nb::value_error("there are links of more rows than codes");
  if (degree < 1 || degree > kMaxDegree || before > kMaxDegree || (known < size && degree < before) || beam < 1 ||
      !(alpha >= 1))
    throw nb::value_error("degree, beam or alpha is out of range");
  choice.graph = {links.data(),
                  known,
                  before,
                  entries.data(),
                  static_cast<std::int64_t>(entries.shape(0)),
                  next_equal_or_null(next_equal, size)};
  choice.degree = degree;
  choice.beam = beam;
  choice.alpha = alpha;
  auto out = new_array<std::int32_t>(size, degree);
  std::int32_t* rows = out.data();
  const int at_once = threads(num_threads);
  {
    nb::gil_scoped_release release;
    choice.run(rows, at_once);
  }
  return out;
}

// Coded vectors with a graph over them, and others after them, in the caller's arrays, which stay alive with this
// object.
class CodedGraph {
 public:
  CodedGraph(std::int64_t dim, Codes codes, FloatVector scales, Int32Matrix links, Int32Vector entries,
             Codes recent_codes, FloatVector recent_scales, std::optional<Int32Vector> next_equal)
      : codes_(std::move(codes)),
        scales_(std::move(scales)),
        links_(std::move(links)),
        entries_(std::move(entries)),
        recent_codes_(std::move(recent_codes)),
        recent_scales_(std::move(recent_scales)),
        next_equal_(std::move(next_equal)) {
    search_.nodes = coded_vectors(codes_, scales_, dim);
    search_.recent = coded_vectors(recent_codes_, recent_scales_, dim);
    if (static_cast<std::int64_t>(links_.shape(0)) != search_.nodes.size)
      throw nb::value_error("codes and links differ in length");
    if (size() > INT32_MAX) throw nb::value_error("more rows than an int32 can number");
    if (static_cast<std::int64_t>(links_.shape(1)) > kMaxDegree)
      throw nb::value_error("more links of a node than any graph has");
    search_.graph = {links_.data(),
                     search_.nodes.size,
                     static_cast<std::int64_t>(links_.shape(1)),
                     entries_.data(),
                     static_cast<std::int64_t>(entries_.shape(0)),
                     next_equal_or_null(next_equal_, search_.nodes.size)};
  }

  std::int64_t size() const { return search_.size(); }

  NewArray<std::int64_t, 2> search(const FloatMatrix& queries, const std::optional<Flags>& excluded,
                                   std::int64_t num_excluded, std::int64_t num_candidates, std::int64_t beam,
                                   std::int64_t num_threads) const {
    if (static_cast<std::int64_t>(queries.shape(1)) != search_.nodes.dim)
      throw nb::value_error("queries and vectors differ in dim");
    lemur::CandidateSearch search = search_;
    if (excluded) {
      if (static_cast<std::int64_t>(excluded->shape(0)) != size())
        throw nb::value_error("excluded and rows differ in length");
      if (num_excluded < 0 || num_excluded > size()) throw nb::value_error("num_excluded is out of range");
      search.excluded = reinterpret_cast<const std::uint8_t*>(excluded->data());
      search.num_excluded = num_excluded;
    }
    search.num_candidates = num_candidates;
    search.beam = std::min(std::max<std::int64_t>(beam, 1), size());
    const int at_once = threads(num_threads);
    const auto num_queries = static_cast<std::int64_t>(queries.shape(0));
    auto out = new_array<std::int64_t>(num_queries, std::max<std::int64_t>(search.num_found(), 0));
    const float* data = queries.data();
    std::int64_t* rows = out.data();
    {
      nb::gil_scoped_release release;
      search.run(data, num_queries, rows, at_once);
    }
    return out;
  }

 private:
  Codes codes_;
  FloatVector scales_;
  Int32Matrix links_;
  Int32Vector entries_;
  Codes recent_codes_;
  FloatVector recent_scales_;
  std::optional<Int32Vector> next_equal_;
  lemur::CandidateSearch search_;
};

}  // namespace

void bind_graph(nb::module_& m) {
  m.def(
      "int8_stride", [](std::int64_t dim) { return lemur::int8_stride(coded_dim(dim)); }, nb::arg("dim"),
      "Codes of a row of dim components.");
  m.def("int8_codes", &int8_codes, nb::arg("vectors").noconvert(), nb::arg("num_threads"),
        "int8 codes (n, stride), zeros from dim on, and float32 scales (n,) of float32 vectors (n, dim).");
  m.def("better_links", &better_links, nb::arg("dim"), nb::arg("codes").noconvert(), nb::arg("scales").noconvert(),
        nb::arg("links").noconvert(), nb::arg("entries").noconvert(), nb::arg("degree"), nb::arg("beam"),
        nb::arg("alpha"), nb::arg("num_threads"), nb::arg("next_equal").noconvert() = nb::none(),
        "Links (n, degree) of coded vectors, chosen among what a search of the graph there is finds near each. Where "
        "`links` are of fewer rows, these keep theirs, and the others join them. next_equal int32 (n,): the next row "
        "with the same codes, -1 for none; or empty.");
  nb::class_<CodedGraph>(m, "CodedGraph",
                         "int8 codes of vectors, links (num_nodes, degree) between them, -1 for none, and codes of the "
                         "rows after them, which are scanned. Rows with the same codes are listed in next_equal "
                         "(num_nodes,), which is empty where there are none; the first of them alone has links.")
      .def(nb::init<std::int64_t, Codes, FloatVector, Int32Matrix, Int32Vector, Codes, FloatVector,
                    std::optional<Int32Vector>>(),
           nb::arg("dim"), nb::arg("codes").noconvert(), nb::arg("scales").noconvert(), nb::arg("links").noconvert(),
           nb::arg("entries").noconvert(), nb::arg("recent_codes").noconvert(), nb::arg("recent_scales").noconvert(),
           nb::arg("next_equal").noconvert() = nb::none())
      .def("__len__", &CodedGraph::size)
      .def("search", &CodedGraph::search, nb::arg("queries").noconvert(), nb::arg("excluded").noconvert().none(),
           nb::arg("num_excluded"), nb::arg("num_candidates"), nb::arg("beam"), nb::arg("num_threads"),
           "(num_queries, found) rows of largest inner product, best first; found is num_candidates, or all rows that "
           "are not excluded where these are fewer. Where the beam is narrower, the rows beyond it are the best of all "
           "that "
           "the walk looked at.");
}

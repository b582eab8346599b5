#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "array_args.hpp"
#include "lemur/maxsim.hpp"

namespace lemur_bindings {

lemur::TokenView token_view(const FloatMatrix& tokens) {
  return {tokens.data(), lemur::TokenType::kFloat32, static_cast<std::int64_t>(tokens.shape(0)),
          static_cast<std::int64_t>(tokens.shape(1))};
}

lemur::TokenView token_view(const AnyMatrix& tokens) {
  lemur::TokenType type;
  if (tokens.dtype() == nb::dtype<float>()) {
    type = lemur::TokenType::kFloat32;
  } else if (tokens.dtype().code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float) &&
             tokens.dtype().bits == 16) {
    type = lemur::TokenType::kFloat16;
  } else {
    throw nb::type_error("tokens must be float32 or float16");
  }
  return {tokens.data(), type, static_cast<std::int64_t>(tokens.shape(0)), static_cast<std::int64_t>(tokens.shape(1))};
}

lemur::RaggedView ragged_view(const lemur::TokenView& tokens, const Int64Vector& offsets) {
  if (offsets.shape(0) < 1) throw nb::value_error("offsets must have at least one element");
  return {tokens, offsets.data(), static_cast<std::int64_t>(offsets.shape(0)) - 1};
}

namespace {

using FloatArray1 = nb::ndarray<nb::numpy, float, nb::ndim<1>>;
using FloatArray2 = nb::ndarray<nb::numpy, float, nb::ndim<2>>;
using Int64Array1 = nb::ndarray<nb::numpy, std::int64_t, nb::ndim<1>>;

// Documents in the caller's buffers, which stay alive with this object.
class Documents {
 public:
  explicit Documents(std::vector<std::pair<AnyMatrix, Int64Vector>> chunks)
      : chunks_(std::move(chunks)), view_(views(chunks_)) {}

  const lemur::DocumentsView& view() const { return view_; }

 private:
  static std::vector<lemur::RaggedView> views(const std::vector<std::pair<AnyMatrix, Int64Vector>>& chunks) {
    std::vector<lemur::RaggedView> out;
    for (const auto& [tokens, offsets] : chunks) {
      out.push_back(ragged_view(token_view(tokens), offsets));
      for (std::int64_t i = 0; i < out.back().size; ++i) out.back().range(i);  // throws where offsets run backwards
    }
    return out;
  }

  std::vector<std::pair<AnyMatrix, Int64Vector>> chunks_;
  lemur::DocumentsView view_;
};

lemur::Precision precision_named(const std::string& name) {
  if (name == "float32") return lemur::Precision::kFloat32;
  if (name == "int8") return lemur::Precision::kInt8;
  throw nb::value_error(("precision must be 'float32' or 'int8', got '" + name + "'").c_str());
}

FloatArray2 token_maxima(const FloatMatrix& tokens, const Documents& documents, int num_threads,
                         const std::string& precision, bool by_document) {
  const lemur::Precision kind = precision_named(precision);
  const lemur::TokenView x = token_view(tokens);
  const std::int64_t size = documents.view().size();
  auto out = by_document ? new_array<float>(size, x.num_tokens) : new_array<float>(x.num_tokens, size);
  const lemur::MaximaLayout layout{out.data(), by_document ? 1 : size, by_document ? x.num_tokens : 1};
  nb::gil_scoped_release release;
  lemur::token_maxima(static_cast<const float*>(x.data), x.num_tokens, x.dim, documents.view(), layout, kind,
                      num_threads);
  return out;
}

FloatArray2 scores(const FloatMatrix& queries, const Int64Vector& query_offsets, const Documents& documents,
                   int num_threads) {
  const lemur::RaggedView q = ragged_view(token_view(queries), query_offsets);
  auto out = new_array<float>(q.size, documents.view().size());
  float* data = out.data();
  nb::gil_scoped_release release;
  lemur::scores(q, documents.view(), data, num_threads);
  return out;
}

FloatArray1 candidate_scores(const FloatMatrix& queries, const Int64Vector& query_offsets, const Documents& documents,
                             const Int64Vector& candidates, const Int64Vector& candidate_offsets, int num_threads) {
  const lemur::RaggedView q = ragged_view(token_view(queries), query_offsets);
  if (static_cast<std::int64_t>(candidate_offsets.shape(0)) != q.size + 1)
    throw nb::value_error("candidate_offsets must have one element more than there are queries");
  const std::int64_t* offsets = candidate_offsets.data();
  if (offsets[0] < 0 || offsets[q.size] > static_cast<std::int64_t>(candidates.shape(0)) ||
      !std::is_sorted(offsets, offsets + q.size + 1))
    throw nb::value_error("candidate_offsets must ascend within the candidates");
  auto out = new_array<float>(candidates.shape(0));
  float* data = out.data();
  nb::gil_scoped_release release;
  lemur::candidate_scores(q, documents.view(), candidates.data(), offsets, data, num_threads);
  return out;
}

Int64Array1 top_k(const nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>& values, std::int64_t k) {
  const std::vector<std::int64_t> order = lemur::top_k(values.data(), static_cast<std::int64_t>(values.shape(0)), k);
  auto out = new_array<std::int64_t>(order.size());
  std::copy(order.begin(), order.end(), out.data());
  return out;
}

}  // namespace
}  // namespace lemur_bindings

void bind_maxsim(nanobind::module_& m) {
  using namespace lemur_bindings;
  nb::class_<Documents>(m, "Documents", "Documents in one or more chunks of (tokens, offsets), read where they lie.")
      .def(nb::init<std::vector<std::pair<AnyMatrix, Int64Vector>>>(), nb::arg("chunks"),
           nb::sig("def __init__(self, chunks: collections.abc.Sequence[tuple[numpy.typing.NDArray[typing.Any], "
                   "numpy.typing.NDArray[numpy.int64]]]) -> None"))
      .def("__len__", [](const Documents& d) { return d.view().size(); })
      .def_prop_ro("num_tokens", [](const Documents& d) { return d.view().num_tokens(); })
      .def_prop_ro("dim", [](const Documents& d) { return d.view().dim(); });
  m.def("token_maxima", &token_maxima, nb::arg("tokens").noconvert(), nb::arg("documents"), nb::arg("num_threads"),
        nb::arg("precision") = "float32", nb::arg("by_document") = false,
        "(num_tokens, num_documents), or the transpose if by_document: the largest inner product of each token with a "
        "token of each document.");
  m.def("scores", &scores, nb::arg("queries").noconvert(), nb::arg("query_offsets").noconvert(), nb::arg("documents"),
        nb::arg("num_threads"), "(num_queries, num_documents) MaxSim scores.");
  m.def("candidate_scores", &candidate_scores, nb::arg("queries").noconvert(), nb::arg("query_offsets").noconvert(),
        nb::arg("documents"), nb::arg("candidates").noconvert(), nb::arg("candidate_offsets").noconvert(),
        nb::arg("num_threads"), "MaxSim scores of each query's own candidates, in the shape of candidates.");
  m.def("top_k", &top_k, nb::arg("values").noconvert(), nb::arg("k"),
        "Positions of the k largest values, best first; -inf counts as absent.");
}

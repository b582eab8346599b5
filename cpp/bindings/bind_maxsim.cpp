#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "array_args.hpp"
#include "bind_codec.hpp"
#include "lemur/int8.hpp"
#include "lemur/maxsim.hpp"
#include "lemur/rerank.hpp"

using namespace lemur_bindings;

namespace {

using CodesOfTokens = std::tuple<Codes, FloatVector, Int32Vector>;
using Chunk = std::pair<AnyMatrix, Int64Vector>;

// Documents in the caller's buffers, which stay alive with this object.
class Documents {
 public:
  Documents(std::vector<Chunk> chunks, std::vector<CodesOfTokens> codes, const SmallCodesOfDocuments* small)
      : chunks_(std::move(chunks)),
        codes_(std::move(codes)),
        view_(views(chunks_, codes_), small == nullptr ? nullptr : &small->view()) {
    if (small != nullptr && (view_.size() != small->view().size() || view_.dim() != small->view().codec().dim()))
      throw nb::value_error("small codes must be of the same documents");
  }

  const lemur::DocumentsView& view() const { return view_; }

 private:
  static std::vector<lemur::RaggedView> views(const std::vector<Chunk>& chunks,
                                              const std::vector<CodesOfTokens>& all_codes) {
    if (!all_codes.empty() && all_codes.size() != chunks.size())
      throw nb::value_error("there must be codes for each chunk, or for none");
    std::vector<lemur::RaggedView> out;
    for (std::size_t c = 0; c < chunks.size(); ++c) {
      const auto& [tokens, offsets] = chunks[c];
      out.push_back(ragged_view(token_view(tokens), offsets));
      lemur::RaggedView& view = out.back();
      for (std::int64_t i = 0; i < view.size; ++i) view.range(i);  // throws where offsets run backwards
      if (all_codes.empty()) continue;
      const auto& [codes, scales, sums] = all_codes[c];
      if (codes.shape(0) != tokens.shape(0) || scales.shape(0) != tokens.shape(0) || sums.shape(0) != tokens.shape(0) ||
          static_cast<std::int64_t>(codes.shape(1)) != lemur::int8_stride(coded_dim(view.tokens.dim)))
        throw nb::value_error("codes, scales and sums must have a row for each token, and codes the stride of dim");
      view.codes = {codes.data(), scales.data(), sums.data()};
    }
    return out;
  }

  std::vector<Chunk> chunks_;
  std::vector<CodesOfTokens> codes_;
  lemur::DocumentsView view_;
};

// int8 codes, scales and sums of codes of a matrix of tokens.
std::tuple<NewArray<std::int8_t, 2>, NewArray<float, 1>, NewArray<std::int32_t, 1>> token_codes(
    const AnyMatrix& tokens, std::int64_t num_threads) {
  const lemur::TokenView view = token_view(tokens);
  const std::int64_t stride = lemur::int8_stride(coded_dim(view.dim));
  auto codes = new_array<std::int8_t>(view.num_tokens, stride);
  auto scales = new_array<float>(view.num_tokens);
  auto sums = new_array<std::int32_t>(view.num_tokens);
  const lemur::CodedRows out{codes.data(), scales.data(), sums.data()};
  const int at_once = threads(num_threads);
  {
    nb::gil_scoped_release release;
    lemur::quantise_tokens(view, out, at_once);
  }
  return {codes, scales, sums};
}

lemur::Precision precision_named(const std::string& name) {
  if (name == "float32") return lemur::Precision::kFloat32;
  if (name == "int8") return lemur::Precision::kInt8;
  throw nb::value_error(("precision must be 'float32' or 'int8', got '" + name + "'").c_str());
}

NewArray<float, 2> token_maxima(const FloatMatrix& tokens, const Documents& documents, std::int64_t num_threads,
                                const std::string& precision, bool by_document) {
  const lemur::Precision kind = precision_named(precision);
  const lemur::TokenView x = token_view(tokens);
  const std::int64_t size = documents.view().size();
  auto out = by_document ? new_array<float>(size, x.num_tokens) : new_array<float>(x.num_tokens, size);
  if (kind == lemur::Precision::kInt8) coded_dim(x.dim);
  const lemur::MaximaLayout layout{out.data(), by_document ? 1 : size, by_document ? x.num_tokens : 1};
  const int at_once = threads(num_threads);
  nb::gil_scoped_release release;
  lemur::token_maxima(static_cast<const float*>(x.data), x.num_tokens, x.dim, documents.view(), layout, kind, at_once);
  return out;
}

NewArray<float, 2> scores(const FloatMatrix& queries, const Int64Vector& query_offsets, const Documents& documents,
                          std::int64_t num_threads) {
  const lemur::RaggedView q = ragged_view(token_view(queries), query_offsets);
  auto out = new_array<float>(q.size, documents.view().size());
  float* data = out.data();
  const int at_once = threads(num_threads);
  nb::gil_scoped_release release;
  lemur::scores(q, documents.view(), data, at_once);
  return out;
}

void check_candidates(const lemur::RaggedView& queries, const Int64Vector& candidates, const Int64Vector& offsets) {
  if (static_cast<std::int64_t>(offsets.shape(0)) != queries.size + 1)
    throw nb::value_error("candidate_offsets must have one element more than there are queries");
  const std::int64_t* begin = offsets.data();
  if (begin[0] < 0 || begin[queries.size] > static_cast<std::int64_t>(candidates.shape(0)) ||
      !std::is_sorted(begin, begin + queries.size + 1))
    throw nb::value_error("candidate_offsets must ascend within the candidates");
}

NewArray<float, 1> candidate_scores(const FloatMatrix& queries, const Int64Vector& query_offsets,
                                    const Documents& documents, const Int64Vector& candidates,
                                    const Int64Vector& candidate_offsets, std::int64_t num_threads) {
  const lemur::RaggedView q = ragged_view(token_view(queries), query_offsets);
  check_candidates(q, candidates, candidate_offsets);
  auto out = new_array<float>(candidates.shape(0));
  float* data = out.data();
  const int at_once = threads(num_threads);
  nb::gil_scoped_release release;
  lemur::candidate_scores(q, documents.view(), candidates.data(), candidate_offsets.data(), data, at_once);
  return out;
}

using Reranked = std::tuple<NewArray<std::int64_t, 2>, NewArray<float, 2>, NewArray<std::int64_t, 1>>;

Reranked rerank(const FloatMatrix& queries, const Int64Vector& query_offsets, const Documents& documents,
                const Int64Vector& candidates, const Int64Vector& candidate_offsets, std::int64_t k,
                std::int64_t num_threads) {
  const lemur::RaggedView q = ragged_view(token_view(queries), query_offsets);
  check_candidates(q, candidates, candidate_offsets);
  if (k < 1) throw nb::value_error("k must be at least 1");
  auto found = new_array<std::int64_t>(q.size, k);
  auto scores = new_array<float>(q.size, k);
  auto counts = new_array<std::int64_t>(q.size);
  const lemur::RerankResult out{found.data(), scores.data(), counts.data()};
  const int at_once = threads(num_threads);
  {
    nb::gil_scoped_release release;
    lemur::rerank(q, documents.view(), candidates.data(), candidate_offsets.data(), k, out, at_once);
  }
  return {found, scores, counts};
}

NewArray<std::int64_t, 1> top_k(const FloatVector& values, std::int64_t k) {
  const std::vector<std::int64_t> order = lemur::top_k(values.data(), static_cast<std::int64_t>(values.shape(0)), k);
  auto out = new_array<std::int64_t>(order.size());
  std::copy(order.begin(), order.end(), out.data());
  return out;
}

}  // namespace

void bind_maxsim(nb::module_& m) {
  nb::class_<Documents>(
      m, "Documents",
      "Documents in one or more chunks of (tokens, offsets), and what token_codes gave for the tokens "
      "of each, or small codes of all documents, read where they lie. Without chunks, of small codes alone.")
      .def(nb::init<std::vector<Chunk>, std::vector<CodesOfTokens>, const SmallCodesOfDocuments*>(), nb::arg("chunks"),
           nb::arg("codes") = nb::list(), nb::arg("small") = nb::none(), nb::keep_alive<1, 4>(),
           nb::sig("def __init__(self, chunks: collections.abc.Sequence[tuple[numpy.typing.NDArray[typing.Any], "
                   "numpy.typing.NDArray[numpy.int64]]], codes: collections.abc.Sequence["
                   "tuple[numpy.typing.NDArray[numpy.int8], numpy.typing.NDArray[numpy.float32], "
                   "numpy.typing.NDArray[numpy.int32]]] = (), small: SmallDocuments | None = None) -> None"))
      .def("__len__", [](const Documents& d) { return d.view().size(); });
  m.def("token_maxima", &token_maxima, nb::arg("tokens").noconvert(), nb::arg("documents"), nb::arg("num_threads"),
        nb::arg("precision") = "float32", nb::arg("by_document") = false,
        "(num_tokens, num_documents), or the transpose if by_document: the largest inner product of each token with a "
        "token of each document.");
  m.def("scores", &scores, nb::arg("queries").noconvert(), nb::arg("query_offsets").noconvert(), nb::arg("documents"),
        nb::arg("num_threads"), "(num_queries, num_documents) MaxSim scores.");
  m.def("candidate_scores", &candidate_scores, nb::arg("queries").noconvert(), nb::arg("query_offsets").noconvert(),
        nb::arg("documents"), nb::arg("candidates").noconvert(), nb::arg("candidate_offsets").noconvert(),
        nb::arg("num_threads"), "MaxSim scores of each query's own candidates, in the shape of candidates.");
  m.def("token_codes", &token_codes, nb::arg("tokens").noconvert(), nb::arg("num_threads"),
        nb::sig("def token_codes(tokens: numpy.typing.NDArray[typing.Any], num_threads: int) -> "
                "tuple[numpy.typing.NDArray[numpy.int8], numpy.typing.NDArray[numpy.float32], "
                "numpy.typing.NDArray[numpy.int32]]"),
        "int8 codes (num_tokens, stride), their float32 scales and int32 sums (num_tokens,).");
  m.def("rerank", &rerank, nb::arg("queries").noconvert(), nb::arg("query_offsets").noconvert(), nb::arg("documents"),
        nb::arg("candidates").noconvert(), nb::arg("candidate_offsets").noconvert(), nb::arg("k"),
        nb::arg("num_threads"),
        "Each query's best candidates by exact MaxSim: documents and scores (num_queries, k), and how many of them "
        "count.");
  m.def("top_k", &top_k, nb::arg("values").noconvert(), nb::arg("k"),
        "Positions of the k largest values, best first; -inf counts as absent.");
}

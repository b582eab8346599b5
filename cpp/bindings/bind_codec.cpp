#include "bind_codec.hpp"

#include <nanobind/nanobind.h>

#include "lemur/cpu.hpp"
#include "lemur/int8.hpp"

using namespace lemur_bindings;

namespace lemur_bindings {

std::vector<lemur::SmallDocuments::Part> SmallCodesOfDocuments::views(const lemur::Codec& codec,
                                                                      const std::vector<SmallPart>& parts) {
  std::vector<lemur::SmallDocuments::Part> out;
  for (const auto& [codes, centroids, scales, lengths, offsets] : parts) {
    const std::size_t size = codes.shape(0);
    if (static_cast<std::int64_t>(codes.shape(1)) != codec.num_bytes() || centroids.shape(0) != size ||
        scales.shape(0) != size || (lengths && lengths->shape(0) != size))
      throw nb::value_error(
          "codes, centroids, scales and lengths must have an element for each token, and codes the "
          "bytes of the codec");
    if (offsets.shape(0) < 1) throw nb::value_error("offsets must have one element more than there are documents");
    out.push_back({codes.data(), centroids.data(), scales.data(), lengths ? lengths->data() : nullptr,
                   static_cast<std::int64_t>(size), offsets.data(), static_cast<std::int64_t>(offsets.shape(0)) - 1});
  }
  const lemur::SmallDocuments all(codec, out);
  for (std::int64_t i = 0; i < all.size(); ++i) all.document(i);  // throws where offsets run backwards
  return out;
}

}  // namespace lemur_bindings

namespace {

using Encoded = std::tuple<NewArray<std::uint8_t, 2>, NewArray<std::int16_t, 1>, NewArray<float, 1>>;

Encoded encode(const lemur::Codec& codec, const AnyMatrix& tokens, const Words& centroids, std::int64_t num_threads) {
  const lemur::TokenView view = token_view(tokens);
  if (static_cast<std::int64_t>(centroids.shape(0)) != view.num_tokens)
    throw nb::value_error("there must be a centroid for each token");
  auto codes = new_array<std::uint8_t>(view.num_tokens, codec.num_bytes());
  auto scales = new_array<std::int16_t>(view.num_tokens);
  auto lengths = new_array<float>(view.num_tokens);
  const lemur::Codec::Out out{codes.data(), scales.data(), lengths.data()};
  const int at_once = threads(num_threads);
  {
    nb::gil_scoped_release release;
    codec.encode(view, centroids.data(), out, at_once);
  }
  return {codes, scales, lengths};
}

NewArray<float, 2> decode(const lemur::Codec& codec, const Bytes& codes, const Words& centroids,
                          const SignedWords& scales, const std::optional<FloatVector>& lengths) {
  const auto size = static_cast<std::int64_t>(codes.shape(0));
  const std::int64_t bounds[] = {0, size};
  auto offsets = Int64Vector(bounds, {2}, nb::handle());
  const SmallCodesOfDocuments one(codec, {{codes, centroids, scales, lengths, offsets}});
  auto out = new_array<float>(size, codec.dim());
  float* data = out.data();
  nb::gil_scoped_release release;
  std::vector<float> turned(static_cast<std::size_t>(size * codec.dim()));
  lemur::SmallReader(lemur::active_kernels(), one.view()).float_rows(one.view().document(0), size, turned.data());
  codec.turn_back(turned.data(), size, data);
  return out;
}

}  // namespace

void bind_codec(nb::module_& m) {
  m.def(
      "small_bytes",
      [](std::int64_t dim, std::int64_t bits) {
        if (bits < 1 || bits > 4) throw nb::value_error("small codes have 1 to 4 bits");
        return lemur::small_bytes(coded_dim(dim), bits);
      },
      nb::arg("dim"), nb::arg("bits"), "Of the codes of a token of dim components.");
  nb::class_<lemur::Codec>(m, "Codec", "Tokens as a centroid's number and 1 to 4 bits a component.")
      .def(
          "__init__",
          [](lemur::Codec* self, const FloatMatrix& centroids, const FloatMatrix& token_map,
             const FloatMatrix& query_map, double unit, std::int64_t bits) {
            const lemur::TokenView view = token_view(centroids);
            for (const FloatMatrix& map : {token_map, query_map})
              if (static_cast<std::int64_t>(map.shape(0)) != view.dim || map.shape(1) != map.shape(0))
                throw nb::value_error("maps of tokens must be (dim, dim)");
            if (bits < 1 || bits > 4) throw nb::value_error("small codes have 1 to 4 bits");
            new (self)
                lemur::Codec(static_cast<const float*>(view.data), view.num_tokens, token_map.data(), query_map.data(),
                             coded_dim(view.dim), static_cast<float>(unit), static_cast<int>(bits));
          },
          nb::arg("centroids").noconvert(), nb::arg("token_map").noconvert(), nb::arg("query_map").noconvert(),
          nb::arg("unit"), nb::arg("bits"))
      .def_prop_ro("num_bytes", &lemur::Codec::num_bytes, "Of a token's codes.")
      .def("encode", &encode, nb::arg("tokens").noconvert(), nb::arg("centroids").noconvert(), nb::arg("num_threads"),
           nb::sig("def encode(self, tokens: numpy.typing.NDArray[typing.Any], centroids: "
                   "numpy.typing.NDArray[numpy.uint16], num_threads: int) -> "
                   "tuple[numpy.typing.NDArray[numpy.uint8], numpy.typing.NDArray[numpy.int16], "
                   "numpy.typing.NDArray[numpy.float32]]"),
           "Codes (num_tokens, num_bytes) of tokens with these centroids, their scales, and the tokens' lengths.")
      .def("decode", &decode, nb::arg("codes").noconvert(), nb::arg("centroids").noconvert(),
           nb::arg("scales").noconvert(), nb::arg("lengths").noconvert().none(),
           nb::sig("def decode(self, codes: numpy.typing.NDArray[numpy.uint8], centroids: "
                   "numpy.typing.NDArray[numpy.uint16], scales: numpy.typing.NDArray[numpy.int16], lengths: "
                   "numpy.typing.NDArray[numpy.float32] | None) -> numpy.typing.NDArray[numpy.float32]"),
           "The tokens that codes stand for, (num_tokens, dim).");
  nb::class_<SmallCodesOfDocuments>(m, "SmallDocuments",
                                    "Documents as small codes, in parts of (codes, centroids, scales, lengths or None, "
                                    "offsets), read where they lie.")
      .def(nb::init<const lemur::Codec&, std::vector<SmallPart>>(), nb::arg("codec"), nb::arg("parts"),
           nb::keep_alive<1, 2>(),
           nb::sig("def __init__(self, codec: Codec, parts: collections.abc.Sequence["
                   "tuple[numpy.typing.NDArray[numpy.uint8], numpy.typing.NDArray[numpy.uint16], "
                   "numpy.typing.NDArray[numpy.int16], numpy.typing.NDArray[numpy.float32] | None, "
                   "numpy.typing.NDArray[numpy.int64]]]) -> None"))
      .def("__len__", [](const SmallCodesOfDocuments& self) { return self.view().size(); });
}

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

#include "array_args.hpp"
#include "lemur/pooling.hpp"

using namespace lemur_bindings;

namespace {

using PooledDocuments = std::tuple<NewArray<float, 2>, NewArray<std::int64_t, 1>, NewArray<std::uint16_t, 1>>;

PooledDocuments pool(const AnyMatrix& tokens, const Int64Vector& offsets, std::int64_t factor,
                     std::int64_t protected_tokens, std::int64_t piece, std::int64_t num_threads) {
  // Of its own: results are written by offsets, which nobody may change meanwhile.
  const std::vector<std::int64_t> own(offsets.data(), offsets.data() + offsets.shape(0));
  lemur::RaggedView documents = ragged_view(token_view(tokens), offsets);
  documents.offsets = own.data();
  const lemur::Pooling pooling{factor, protected_tokens, piece};
  const int at_once = threads(num_threads);
  const std::int64_t dim = documents.tokens.dim;
  std::int64_t most = 0, num_tokens = 0;
  for (std::int64_t i = 0; i < documents.size; ++i) {
    const std::int64_t size = documents.range(i).size();
    most += lemur::most_pooled_tokens(size, pooling);
    num_tokens += size;
  }
  auto pooled = new_array<float>(most, dim);
  auto bounds = new_array<std::int64_t>(documents.size + 1);
  auto groups = new_array<std::uint16_t>(num_tokens);
  float* out = pooled.data();
  std::int64_t* ends = bounds.data();
  std::uint16_t* numbers = groups.data();
  {
    nb::gil_scoped_release release;
    std::vector<std::int64_t> sizes(static_cast<std::size_t>(documents.size));
    lemur::pool(documents, pooling, {out, sizes.data(), numbers}, at_once);
    std::int64_t from = 0;
    ends[0] = 0;
    for (std::int64_t i = 0; i < documents.size; ++i) {  // without gaps
      if (from != ends[i]) std::copy_n(out + from * dim, sizes[i] * dim, out + ends[i] * dim);
      ends[i + 1] = ends[i] + sizes[i];
      from += lemur::most_pooled_tokens(documents.range(i).size(), pooling);
    }
  }
  return {pooled, bounds, groups};
}

}  // namespace

void bind_pooling(nb::module_& m) {
  m.def(
      "pool", &pool, nb::arg("tokens").noconvert(), nb::arg("offsets").noconvert(), nb::arg("factor"),
      nb::arg("protected_tokens"), nb::arg("piece"), nb::arg("num_threads"),
      nb::sig("def pool(tokens: numpy.typing.NDArray[typing.Any], offsets: typing.Annotated[numpy.typing.NDArray["
              "numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], factor: int, "
              "protected_tokens: int, piece: int, num_threads: int) -> tuple[numpy.typing.NDArray[numpy.float32], "
              "numpy.typing.NDArray[numpy.int64], numpy.typing.NDArray[numpy.uint16]]"),
      "Pooled tokens of documents, float32, of which offsets[-1] rows are used; their offsets; and for each token the "
      "number of its pooled one within its document. Documents of more than `piece` tokens are pooled in pieces.");
  m.attr("MAX_POOLING_PIECE") = lemur::kMaxPoolingPiece;
  m.attr("MAX_POOLED_TOKENS") = lemur::kMaxPooledTokens;
}

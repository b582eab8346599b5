#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "array_args.hpp"
#include "lemur/look.hpp"
#include "lemur/parallel.hpp"
#include "lemur/scored.hpp"

using namespace lemur_bindings;

namespace {

using Ids = ArrayArg<std::uint16_t, 1>;
using Flags = ArrayArg<bool, 1>;
using Weights = std::tuple<FloatMatrix, FloatVector, FloatVector>;  // input (hidden, kFeatures), bias, output

lemur::LookWeights look_weights(const Weights& weights) {
  const auto& [input, bias, output] = weights;
  if (static_cast<std::int64_t>(input.shape(1)) != lemur::SecondLook::kFeatures || bias.shape(0) != input.shape(0) ||
      output.shape(0) != input.shape(0))
    throw nb::value_error("weights must be (hidden, 5), (hidden,) and (hidden,)");
  return {input.data(), bias.data(), output.data(), static_cast<std::int64_t>(input.shape(0))};
}

// The centroids of documents, in the caller's arrays, which stay alive with this object.
class Part {
 public:
  Part(Ids ids, Int64Vector offsets, std::int64_t num_centroids)
      : ids_(std::move(ids)), offsets_(std::move(offsets)), view_(view(ids_, offsets_, num_centroids)) {}

  const lemur::CentroidIds& view() const { return view_; }

 private:
  static lemur::CentroidIds view(const Ids& ids, const Int64Vector& offsets, std::int64_t num_centroids) {
    if (offsets.shape(0) < 1) throw nb::value_error("offsets must have one element more than there are documents");
    if (num_centroids < 1 || num_centroids > lemur::Centroids::kMost)
      throw nb::value_error("num_centroids is out of range");
    return {ids.data(), static_cast<std::int64_t>(ids.shape(0)), offsets.data(),
            static_cast<std::int64_t>(offsets.shape(0)) - 1, num_centroids};
  }

  Ids ids_;
  Int64Vector offsets_;
  lemur::CentroidIds view_;
};

class Look {
 public:
  Look(const lemur::Centroids& centroids, const std::vector<const Part*>& parts) : look_(centroids, views(parts)) {}

  std::int64_t size() const { return look_.size(); }

  std::pair<NewArray<std::int64_t, 1>, NewArray<std::int64_t, 1>> with_rare(
      const FloatMatrix& queries, const Int64Vector& query_offsets, const Int64Vector& rows, const Int64Vector& bounds,
      std::int64_t most, std::int64_t num_threads) const {
    const lemur::RaggedView q = checked(queries, query_offsets, rows, bounds);
    std::vector<std::vector<std::int64_t>> found(static_cast<std::size_t>(q.size));
    for_each(q, num_threads, [&](std::int64_t i, Scratch& own) {
      compare(q, i, own);
      list(rows, bounds, i, most, nullptr, own);
      found[i] = own.shortlist.rows;
    });
    auto ends = new_array<std::int64_t>(q.size + 1);
    ends.data()[0] = 0;
    for (std::int64_t i = 0; i < q.size; ++i)
      ends.data()[i + 1] = ends.data()[i] + static_cast<std::int64_t>(found[i].size());
    auto all = new_array<std::int64_t>(ends.data()[q.size]);
    for (std::int64_t i = 0; i < q.size; ++i) std::copy(found[i].begin(), found[i].end(), all.data() + ends.data()[i]);
    return {all, ends};
  }

  NewArray<float, 2> features(const FloatMatrix& queries, const Int64Vector& query_offsets, const Int64Vector& rows,
                              const Int64Vector& bounds, std::int64_t num_estimated, std::int64_t num_threads) const {
    const lemur::RaggedView q = checked(queries, query_offsets, rows, bounds);
    constexpr std::int64_t kFeatures = lemur::SecondLook::kFeatures;
    auto out = new_array<float>(rows.shape(0), kFeatures);
    float* data = out.data();
    std::fill_n(data, out.size(), 0.0f);
    for_each(q, num_threads, [&](std::int64_t i, Scratch& own) {
      compare(q, i, own);
      list(rows, bounds, i, 0, nullptr, own);
      own.shortlist.num_estimated = num_estimated;
      look_.features(own.query, own.shortlist, own.values);
      const std::int64_t begin = bounds.data()[i], count = static_cast<std::int64_t>(own.shortlist.rows.size());
      for (std::int64_t c = 0; c < count; ++c)
        for (std::int64_t f = 0; f < kFeatures; ++f) data[(begin + c) * kFeatures + f] = own.values[f * count + c];
    });
    return out;
  }

  std::pair<NewArray<std::int64_t, 2>, NewArray<std::int64_t, 1>> best(
      const FloatMatrix& queries, const Int64Vector& query_offsets, const Int64Vector& rows, const Int64Vector& bounds,
      std::int64_t num_rare, const std::optional<Flags>& excluded, const Weights& weights, std::int64_t count,
      std::int64_t num_threads) const {
    const lemur::RaggedView q = checked(queries, query_offsets, rows, bounds);
    const lemur::LookWeights network = look_weights(weights);
    if (count < 1) throw nb::value_error("count must be at least 1");
    if (excluded && static_cast<std::int64_t>(excluded->shape(0)) != size())
      throw nb::value_error("excluded and documents differ in length");
    const auto* out_of = excluded ? reinterpret_cast<const std::uint8_t*>(excluded->data()) : nullptr;
    auto found = new_array<std::int64_t>(q.size, count);
    auto counts = new_array<std::int64_t>(q.size);
    std::int64_t *found_data = found.data(), *counts_data = counts.data();
    for_each(q, num_threads, [&](std::int64_t i, Scratch& own) {
      compare(q, i, own);
      list(rows, bounds, i, num_rare, out_of, own);
      look_.scores(own.query, own.shortlist, network, own.values);
      const auto size = static_cast<std::int64_t>(own.values.size());
      std::vector<lemur::Scored<std::int64_t>> order(static_cast<std::size_t>(size));
      for (std::int64_t c = 0; c < size; ++c)  // a score that is not a number has no place in an order
        order[c] = {own.values[c] == own.values[c] ? own.values[c] : -std::numeric_limits<float>::infinity(),
                    own.shortlist.rows[c]};
      const std::int64_t kept = std::min(count, size);
      std::partial_sort(order.begin(), order.begin() + kept, order.end(), lemur::Better());
      counts_data[i] = kept;
      for (std::int64_t c = 0; c < count; ++c) found_data[i * count + c] = c < kept ? order[c].index : -1;
    });
    return {found, counts};
  }

 private:
  struct Scratch {
    lemur::Centroids::Similarities& query;
    lemur::Shortlist shortlist;
    std::vector<float> values;
  };

  static std::vector<const lemur::CentroidIds*> views(const std::vector<const Part*>& parts) {
    std::vector<const lemur::CentroidIds*> out;
    for (const Part* part : parts) out.push_back(&part->view());
    return out;
  }

  void compare(const lemur::RaggedView& queries, std::int64_t i, Scratch& own) const {
    const lemur::TokenRange range = queries.range(i);
    look_.centroids().compare(static_cast<const float*>(queries.tokens.row(range.begin)), range.size(), own.query);
  }

  void list(const Int64Vector& rows, const Int64Vector& bounds, std::int64_t i, std::int64_t num_rare,
            const std::uint8_t* excluded, Scratch& own) const {
    own.shortlist.rows.assign(rows.data() + bounds.data()[i], rows.data() + bounds.data()[i + 1]);
    for (const std::int64_t row : own.shortlist.rows)
      if (row < 0 || row >= size()) throw nb::index_error("a row of a shortlist is outside the documents");
    look_.add_rare(own.query, num_rare, excluded, own.shortlist);
  }

  lemur::RaggedView checked(const FloatMatrix& queries, const Int64Vector& query_offsets, const Int64Vector& rows,
                            const Int64Vector& bounds) const {
    const lemur::RaggedView q = ragged_view(token_view(queries), query_offsets);
    if (q.tokens.dim != look_.centroids().dim()) throw nb::value_error("queries and centroids differ in dim");
    const std::int64_t* ends = bounds.data();
    if (static_cast<std::int64_t>(bounds.shape(0)) != q.size + 1 || ends[0] < 0 ||
        ends[q.size] > static_cast<std::int64_t>(rows.shape(0)) || !std::is_sorted(ends, ends + q.size + 1))
      throw nb::value_error("bounds must ascend within the rows, one more than there are queries");
    return q;
  }

  template <class Body>
  static void for_each(const lemur::RaggedView& queries, std::int64_t num_threads, const Body& body) {
    const int at_once = threads(num_threads);
    nb::gil_scoped_release release;
    lemur::parallel_for(queries.size, at_once, [&] {
      // Similarities are kept from call to call: they are large enough for the system to be asked for them each time.
      static thread_local lemur::Centroids::Similarities similarities;
      return [&body, own = Scratch{similarities, {}, {}}](std::int64_t i) mutable { body(i, own); };
    });
  }

  lemur::SecondLook look_;
};

}  // namespace

void bind_look(nb::module_& m) {
  nb::class_<lemur::Centroids>(m, "Centroids",
                               "Vectors (n, dim) of length 1 that stand for document tokens, 65,536 at most.")
      .def(
          "__init__",
          [](lemur::Centroids* self, const FloatMatrix& rows) {
            const lemur::TokenView view = token_view(rows);
            new (self) lemur::Centroids(static_cast<const float*>(view.data), view.num_tokens, coded_dim(view.dim));
          },
          nb::arg("rows").noconvert())
      .def("__len__", &lemur::Centroids::size)
      .def(
          "nearest",
          [](const lemur::Centroids& self, const AnyMatrix& tokens, std::int64_t num_threads) {
            const lemur::TokenView view = token_view(tokens);
            auto out = new_array<std::uint16_t>(view.num_tokens);
            std::uint16_t* data = out.data();
            const int at_once = threads(num_threads);
            {
              nb::gil_scoped_release release;
              self.nearest(view, data, at_once);
            }
            return out;
          },
          nb::arg("tokens").noconvert(), nb::arg("num_threads"),
          nb::sig("def nearest(self, tokens: numpy.typing.NDArray[typing.Any], num_threads: int) -> "
                  "numpy.typing.NDArray[numpy.uint16]"),
          "The number of the centroid of largest inner product with each token, (num_tokens,).");
  nb::class_<Part>(
      m, "CentroidIds",
      "Documents by the centroids of their tokens: ids uint16 (num_tokens,), offsets int64 (num_documents + 1,).")
      .def(nb::init<Ids, Int64Vector, std::int64_t>(), nb::arg("ids").noconvert(), nb::arg("offsets").noconvert(),
           nb::arg("num_centroids"))
      .def("__len__", [](const Part& self) { return self.view().size(); });
  nb::class_<Look>(m, "SecondLook", "Documents by the centroids of their tokens, in parts that are laid end to end.")
      .def(nb::init<const lemur::Centroids&, const std::vector<const Part*>&>(), nb::arg("centroids"), nb::arg("parts"),
           nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>())
      .def("__len__", &Look::size)
      .def("with_rare", &Look::with_rare, nb::arg("queries").noconvert(), nb::arg("query_offsets").noconvert(),
           nb::arg("rows").noconvert(), nb::arg("bounds").noconvert(), nb::arg("most"), nb::arg("num_threads"),
           "Shortlists, rows[bounds[i] : bounds[i + 1]], with documents of the rarest centroids that are nearest to "
           "tokens of "
           "the query at the end, `most` at most; and their bounds.")
      .def("features", &Look::features, nb::arg("queries").noconvert(), nb::arg("query_offsets").noconvert(),
           nb::arg("rows").noconvert(), nb::arg("bounds").noconvert(), nb::arg("num_estimated"), nb::arg("num_threads"),
           "What is known of each query's own shortlist, rows[bounds[i] : bounds[i + 1]], of which the first "
           "num_estimated "
           "are in the order of estimates: (len(rows), 5).")
      .def("best", &Look::best, nb::arg("queries").noconvert(), nb::arg("query_offsets").noconvert(),
           nb::arg("rows").noconvert(), nb::arg("bounds").noconvert(), nb::arg("num_rare"),
           nb::arg("excluded").noconvert().none(), nb::arg("weights"), nb::arg("count"), nb::arg("num_threads"),
           "Each query's best of its own shortlist and num_rare documents of rare centroids at most, by a network of "
           "weights "
           "(hidden, 5), (hidden,) and (hidden,), best first, (num_queries, count), and how many of them count.");
}

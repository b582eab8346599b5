#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>
#include <vector>

#include "array_args.hpp"
#include "lemur/features.hpp"

using namespace lemur_bindings;

namespace {

struct Layer {
  FloatMatrix weight;
  std::optional<FloatVector> bias, norm_weight, norm_bias;
  std::string activation;
  bool activate_first;
  float scale;
};

lemur::Activation activation_named(const std::string& name) {
  if (name == "gelu") return lemur::Activation::kGelu;
  if (name == "relu") return lemur::Activation::kRelu;
  if (name == "silu") return lemur::Activation::kSilu;
  if (name == "mish") return lemur::Activation::kMish;
  throw nb::value_error(("activation must be 'gelu', 'relu', 'silu' or 'mish', got '" + name + "'").c_str());
}

const float* data_of(const std::optional<FloatVector>& vector, std::size_t size) {
  if (!vector) return nullptr;
  if (vector->shape(0) != size) throw nb::value_error("a layer's bias and norm must have its width");
  return vector->data();
}

lemur::LayerWeights weights(const Layer& layer) {
  const std::size_t width = layer.weight.shape(0);
  if (width == 0 || layer.weight.shape(1) == 0) throw nb::value_error("a layer's weight must have rows and columns");
  if (layer.norm_weight.has_value() != layer.norm_bias.has_value())
    throw nb::value_error("a layer must have both norm_weight and norm_bias, or neither");
  return {
      layer.weight.data(),        static_cast<std::int64_t>(width),   static_cast<std::int64_t>(layer.weight.shape(1)),
      data_of(layer.bias, width), data_of(layer.norm_weight, width),  data_of(layer.norm_bias, width),
      layer.activate_first,       activation_named(layer.activation), layer.scale};
}

}  // namespace

void bind_features(nb::module_& m) {
  nb::class_<Layer>(m, "Layer",
                    "One layer of a feature map: a product, and an activation before or after layer normalisation.")
      .def(nb::init<FloatMatrix, std::optional<FloatVector>, std::optional<FloatVector>, std::optional<FloatVector>,
                    std::string, bool, float>(),
           nb::arg("weight").noconvert(), nb::arg("bias").noconvert().none(), nb::arg("norm_weight").noconvert().none(),
           nb::arg("norm_bias").noconvert().none(), nb::arg("activation"), nb::arg("activate_first"), nb::arg("scale"));
  nb::class_<lemur::QueryEncoder>(m, "QueryEncoder",
                                  "Query features, reduced: the sum of psi over tokens, times query_map.")
      .def(
          "__init__",
          [](lemur::QueryEncoder* self, const std::vector<Layer>& layers, const FloatMatrix& query_map,
             bool homogeneous) {
            std::vector<lemur::LayerWeights> all;
            for (const Layer& layer : layers) all.push_back(weights(layer));
            if (!all.empty() && static_cast<std::int64_t>(query_map.shape(0)) != all.back().width)
              throw nb::value_error("query_map must have a row for each feature");
            if (query_map.shape(1) == 0) throw nb::value_error("query_map must have columns");
            new (self)
                lemur::QueryEncoder(all, query_map.data(), static_cast<std::int64_t>(query_map.shape(1)), homogeneous);
          },
          nb::arg("layers"), nb::arg("query_map").noconvert(), nb::arg("homogeneous") = false)
      .def(
          "encode",
          [](const lemur::QueryEncoder& self, const FloatMatrix& tokens, const Int64Vector& offsets,
             std::int64_t num_threads) {
            const lemur::RaggedView queries = ragged_view(token_view(tokens), offsets);
            auto out = new_array<float>(queries.size, self.dim());
            float* data = out.data();
            const int at_once = threads(num_threads);
            {
              nb::gil_scoped_release release;
              self.encode(queries, data, at_once);
            }
            return out;
          },
          nb::arg("tokens").noconvert(), nb::arg("offsets").noconvert(), nb::arg("num_threads"),
          "float32 (num_queries, dim) of float32 tokens (total_tokens, token dim).");
}

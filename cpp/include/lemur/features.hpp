// Query features for search: the forward pass of the learned map psi, summed over a query's tokens and reduced. The
// definition is lemur_ann/learning/features.py; this agrees with it to float32 rounding, without the cost of a tensor
// library.
#pragma once

#include <cstdint>
#include <vector>

#include "lemur/kernels/table.hpp"
#include "lemur/views.hpp"

namespace lemur {

struct LayerWeights {
  const float* weight = nullptr;  // (width, depth)
  std::int64_t width = 0;
  std::int64_t depth = 0;
  const float* bias = nullptr;         // (width,), or null
  const float* norm_weight = nullptr;  // (width,), or null for a normalisation without parameters
  const float* norm_bias = nullptr;
  bool activate_first = false;  // before the normalisation, not after it
  Activation activation = Activation::kGelu;
  float scale = 1.0f;  // of the activation
};

class QueryEncoder {
 public:
  // Copies the weights. query_map is (width of the last layer, dim). A homogeneous map gives a token's length times
  // the features of its direction, and nothing of a zero row. Throws std::invalid_argument where sizes do not fit.
  QueryEncoder(const std::vector<LayerWeights>& layers, const float* query_map, std::int64_t dim, bool homogeneous);

  std::int64_t token_dim() const { return layers_.front().depth; }
  std::int64_t dim() const { return dim_; }

  // out[i] = (sum of psi over the tokens of query i) times query_map, (queries.size, dim()).
  void encode(const RaggedView& queries, float* out, int num_threads) const;

 private:
  struct Layer {
    std::vector<float> panels, bias, norm_weight, norm_bias;
    std::int64_t depth, width;
    bool activate_first;
    Activation activation;
    float scale;
  };
  class Forward;

  std::vector<Layer> layers_;
  std::vector<float> map_panels_;
  std::int64_t dim_;
  bool homogeneous_;
};

}  // namespace lemur

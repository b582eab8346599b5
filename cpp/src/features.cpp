#include "lemur/features.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "lemur/cpu.hpp"
#include "lemur/parallel.hpp"
#include "lemur/scorer.hpp"

namespace lemur {
namespace {

constexpr float kEpsilon = 1e-5f;          // of torch.nn.LayerNorm
constexpr std::int64_t kBlockTokens = 48;  // their features stay in the second-level cache

std::vector<float> copied(const float* values, std::int64_t size) {
  return values == nullptr ? std::vector<float>() : std::vector<float>(values, values + size);
}

const float* data_or_null(const std::vector<float>& values) { return values.empty() ? nullptr : values.data(); }

std::int64_t padded(std::int64_t width) { return panels_of(width) * kPanelTokens; }

}  // namespace

// One thread's scratch memory.
class QueryEncoder::Forward {
 public:
  explicit Forward(const QueryEncoder& encoder) : encoder_(encoder), kernels_(active_kernels()) {}

  // Adds psi of each token to `sum`, (width of the last layer,).
  void add_features(const float* tokens, std::int64_t num_tokens, float* sum) {
    lengths_.assign(static_cast<std::size_t>(num_tokens), 1.0F);
    const float* rows = encoder_.homogeneous_ ? directions(tokens, num_tokens) : tokens;
    std::int64_t stride = encoder_.token_dim();
    for (const Layer& layer : encoder_.layers_) {
      const std::int64_t out_stride = padded(layer.width);
      next_.resize(static_cast<std::size_t>(num_tokens * out_stride));
      kernels_.products(layer.panels.data(), panels_of(layer.width), rows, num_tokens, stride, layer.depth,
                        next_.data());
      for (std::int64_t t = 0; t < num_tokens; ++t) finish(layer, next_.data() + t * out_stride);
      std::swap(rows_, next_);
      rows = rows_.data();
      stride = out_stride;
    }
    const std::int64_t width = encoder_.layers_.back().width;
    for (std::int64_t t = 0; t < num_tokens; ++t)
      for (std::int64_t i = 0; i < width; ++i) sum[i] += lengths_[t] * rows[t * stride + i];
  }

  void reduce(const float* features, float* out) {
    const std::int64_t width = encoder_.layers_.back().width;
    reduced_.resize(static_cast<std::size_t>(padded(encoder_.dim_)));
    kernels_.products(encoder_.map_panels_.data(), panels_of(encoder_.dim_), features, 1, width, width,
                      reduced_.data());
    std::copy_n(reduced_.data(), encoder_.dim_, out);
  }

 private:
  // Tokens over their lengths, which it keeps. In double: squares of large components are beyond float.
  const float* directions(const float* tokens, std::int64_t num_tokens) {
    const std::int64_t dim = encoder_.token_dim();
    directions_.resize(static_cast<std::size_t>(num_tokens * dim));
    for (std::int64_t t = 0; t < num_tokens; ++t) {
      const float* token = tokens + t * dim;
      double squares = 0;
      for (std::int64_t k = 0; k < dim; ++k) squares += static_cast<double>(token[k]) * static_cast<double>(token[k]);
      const double length = std::sqrt(squares), inverse = length > 0 ? 1 / length : 0;
      lengths_[t] = static_cast<float>(length);
      for (std::int64_t k = 0; k < dim; ++k)
        directions_[t * dim + k] = static_cast<float>(static_cast<double>(token[k]) * inverse);
    }
    return directions_.data();
  }

  void finish(const Layer& layer, float* x) const {
    for (std::size_t i = 0; i < layer.bias.size(); ++i) x[i] += layer.bias[i];
    if (layer.activate_first) kernels_.activate(x, layer.width, layer.activation, layer.scale);
    kernels_.normalise(x, layer.width, data_or_null(layer.norm_weight), data_or_null(layer.norm_bias), kEpsilon);
    if (!layer.activate_first) kernels_.activate(x, layer.width, layer.activation, layer.scale);
  }

  const QueryEncoder& encoder_;
  const KernelTable& kernels_;
  std::vector<float> rows_, next_, reduced_, directions_, lengths_;
};

QueryEncoder::QueryEncoder(const std::vector<LayerWeights>& layers, const float* query_map, std::int64_t dim,
                           bool homogeneous)
    : dim_(dim), homogeneous_(homogeneous) {
  if (layers.empty()) throw std::invalid_argument("a feature map needs at least one layer");
  for (const LayerWeights& layer : layers) {
    if (!layers_.empty() && layer.depth != layers_.back().width)
      throw std::invalid_argument("a layer's depth is not the width of the layer before it");
    // A layer's rows are read `depth` long, `padded(depth)` apart.
    layers_.push_back({pack(layer.weight, layer.width, layer.depth), copied(layer.bias, layer.width),
                       copied(layer.norm_weight, layer.width), copied(layer.norm_bias, layer.width), layer.depth,
                       layer.width, layer.activate_first, layer.activation, layer.scale});
  }
  const std::int64_t width = layers_.back().width;
  std::vector<float> transposed(static_cast<std::size_t>(width * dim));
  for (std::int64_t k = 0; k < width; ++k)
    for (std::int64_t r = 0; r < dim; ++r) transposed[r * width + k] = query_map[k * dim + r];
  map_panels_ = pack(transposed.data(), dim, width);
}

void QueryEncoder::encode(const RaggedView& queries, float* out, int num_threads) const {
  if (queries.tokens.dim != token_dim()) throw std::invalid_argument("queries and feature map differ in dim");
  const std::int64_t width = layers_.back().width;
  parallel_for(queries.size, num_threads, [&] {
    return [&, forward = Forward(*this), sum = std::vector<float>()](std::int64_t i) mutable {
      const TokenRange range = queries.range(i);
      sum.assign(static_cast<std::size_t>(width), 0.0f);
      for (std::int64_t begin = range.begin; begin < range.end; begin += kBlockTokens)
        forward.add_features(static_cast<const float*>(queries.tokens.row(begin)),
                             std::min(kBlockTokens, range.end - begin), sum.data());
      forward.reduce(sum.data(), out + i * dim_);
    };
  });
}

}  // namespace lemur

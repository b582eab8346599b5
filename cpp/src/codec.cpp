#include "lemur/codec.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>

#include "lemur/cpu.hpp"
#include "lemur/kernels/prefetch.hpp"
#include "lemur/parallel.hpp"

// Compiled without fused products and sums, so that all machines give the same codes.

namespace lemur {
namespace {

constexpr float kLargestCode = 127.0f;
constexpr int kRounds = 4;  // of levels for a scale, and a scale for these levels
constexpr std::int64_t kTaskTokens = 256;
constexpr std::int64_t kRowsAtOnce = 16;  // decoded, while as many of the next document are fetched
constexpr float kScaleUnit = 4096.0f, kLargestScale = 32767.0f;
constexpr int kLevelUnit = 8;

// Those above 0 for a standard normal distribution.
constexpr float kLevels1[] = {0.7979f};
constexpr float kLevels2[] = {0.4528f, 1.5104f};
constexpr float kLevels3[] = {0.2451f, 0.7560f, 1.3439f, 2.1520f};
constexpr float kLevels4[] = {0.1284f, 0.3881f, 0.6568f, 0.9424f, 1.2562f, 1.6181f, 2.0690f, 2.7326f};

const float* positive_levels(int bits) {
  return bits == 1 ? kLevels1 : bits == 2 ? kLevels2 : bits == 3 ? kLevels3 : kLevels4;
}

// Whole numbers, the largest 127.
void write_levels(int bits, std::int16_t* out) {
  const float* positive = positive_levels(bits);
  const int half = 1 << (bits - 1);
  for (int i = 0; i < half; ++i) {
    const auto level =
        static_cast<std::int16_t>(std::floor(positive[i] * (kLargestCode / positive[half - 1]) + 0.5f)) * kLevelUnit;
    out[half + i] = static_cast<std::int16_t>(level);
    out[half - 1 - i] = static_cast<std::int16_t>(-level);
  }
}

std::vector<float> transposed(const float* matrix, std::int64_t dim) {
  std::vector<float> out(static_cast<std::size_t>(dim * dim));
  for (std::int64_t i = 0; i < dim; ++i)
    for (std::int64_t k = 0; k < dim; ++k) out[k * dim + i] = matrix[i * dim + k];
  return out;
}

void multiply(const float* rows, std::int64_t num_rows, const Columns& by, float* out) {
  constexpr std::int64_t kRows = 1024;
  std::vector<double> block(static_cast<std::size_t>(std::min(num_rows, kRows) * by.num_columns()));
  for (std::int64_t begin = 0; begin < num_rows; begin += kRows) {
    const std::int64_t count = std::min(kRows, num_rows - begin);
    products(rows + begin * by.depth(), count, by, block.data(), 1);
    for (std::int64_t i = 0; i < count * by.num_columns(); ++i)
      out[begin * by.num_columns() + i] = static_cast<float>(block[i]);
  }
}

int checked_bits(int bits) {
  if (bits < 1 || bits > 4) throw std::invalid_argument("small codes have 1 to 4 bits, got " + std::to_string(bits));
  return bits;
}

}  // namespace

Codec::Codec(const float* centroids, std::int64_t num_centroids, const float* token_map, const float* query_map,
             std::int64_t dim, float unit, int bits)
    : dim_(dim),
      unit_(unit),
      tokens_(transposed(token_map, dim).data(), dim, dim, 1),
      back_(query_map, dim, dim, 1),
      queries_(transposed(query_map, dim).data(), dim, dim, 1) {
  book_.bits = checked_bits(bits);
  if (num_centroids < 1 || num_centroids > 65536) throw std::invalid_argument("expected 1 to 65536 centroids");
  if (!(unit > 1e-30f && unit < 1e30f)) throw std::invalid_argument("the unit of codes must be above 0");
  book_.dim = dim;
  book_.num_bytes = small_bytes(dim, bits);
  book_.num_centroids = num_centroids;
  book_.stride = int8_stride(small_columns(dim, bits));
  write_levels(bits, levels_);
  std::vector<float> turned(static_cast<std::size_t>(num_centroids * dim));
  turn(centroids, num_centroids, turned.data());
  centroids_.assign(static_cast<std::size_t>(num_centroids * book_.stride), 0);
  for (std::int64_t c = 0; c < num_centroids; ++c)
    for (std::int64_t k = 0; k < dim; ++k) {
      const float value = std::floor(turned[c * dim + k] / unit + 0.5f);
      const float within = value > -kLargestCode ? value : -kLargestCode;  // what is no number too
      centroids_[c * book_.stride + k] = static_cast<std::int8_t>(within < kLargestCode ? within : kLargestCode);
    }
}

void Codec::turn(const float* tokens, std::int64_t num_rows, float* out) const {
  multiply(tokens, num_rows, tokens_, out);
}

void Codec::turn_back(const float* turned, std::int64_t num_rows, float* out) const {
  multiply(turned, num_rows, back_, out);
}

void Codec::turn_query(const float* tokens, std::int64_t num_rows, float* out) const {
  multiply(tokens, num_rows, queries_, out);
}

void Codec::encode(const TokenView& tokens, const std::uint16_t* centroids, const Out& out, int num_threads) const {
  if (tokens.dim != dim_) throw std::invalid_argument("tokens and centroids differ in dim");
  for (std::int64_t t = 0; t < tokens.num_tokens; ++t)
    if (centroids[t] >= book_.num_centroids) throw std::invalid_argument("an id is not that of a centroid");
  const KernelTable& kernels = active_kernels();
  struct Scratch {
    std::vector<float> directions, turned, levels;
  };
  parallel_for((tokens.num_tokens + kTaskTokens - 1) / kTaskTokens, num_threads, [&] {
    return [&, own = Scratch()](std::int64_t task) mutable {
      const std::int64_t begin = task * kTaskTokens, count = std::min(kTaskTokens, tokens.num_tokens - begin);
      own.directions.resize(static_cast<std::size_t>(count * dim_));
      own.turned.resize(own.directions.size());
      if (tokens.type == TokenType::kFloat16)
        kernels.widen(static_cast<const std::uint16_t*>(tokens.row(begin)), count * dim_, own.directions.data());
      else
        std::copy_n(static_cast<const float*>(tokens.row(begin)), count * dim_, own.directions.data());
      for (std::int64_t t = 0; t < count; ++t) {
        float* row = own.directions.data() + t * dim_;
        double squares = 0.0;
        for (std::int64_t k = 0; k < dim_; ++k) squares += static_cast<double>(row[k]) * row[k];
        const double length = std::sqrt(squares);
        out.lengths[begin + t] = static_cast<float>(length);
        for (std::int64_t k = 0; k < dim_; ++k)
          row[k] = length > 0.0 ? static_cast<float>(static_cast<double>(row[k]) / length) : 0.0f;
      }
      turn(own.directions.data(), count, own.turned.data());
      for (std::int64_t t = 0; t < count; ++t)
        encode_direction(own.turned.data() + t * dim_, centroids[begin + t], out.codes + (begin + t) * book_.num_bytes,
                         out.scales + begin + t, own.levels);
    };
  });
}

void Codec::encode_direction(const float* turned, std::uint16_t centroid, std::uint8_t* codes, std::int16_t* scale,
                             std::vector<float>& scratch) const {
  const int num_levels = 1 << book_.bits;
  const std::int8_t* base = centroids_.data() + centroid * book_.stride;
  scratch.resize(static_cast<std::size_t>(2 * dim_));
  float *left = scratch.data(), *chosen = left + dim_;
  double squares = 0.0;
  for (std::int64_t k = 0; k < dim_; ++k) {
    left[k] = turned[k] / unit_ - static_cast<float>(base[k]);
    squares += static_cast<double>(left[k]) * left[k];
  }
  float levels[16], bounds[16];
  for (int i = 0; i < num_levels; ++i) levels[i] = static_cast<float>(levels_[i]) / kLevelUnit;
  // The levels are those of a normal distribution of this deviation.
  const float* positive = positive_levels(book_.bits);
  float factor =
      static_cast<float>(std::sqrt(squares / static_cast<double>(dim_))) * positive[num_levels / 2 - 1] / kLargestCode;
  for (int round = 0; round < kRounds; ++round) {
    for (int i = 0; i + 1 < num_levels; ++i) bounds[i] = (levels[i] + levels[i + 1]) * 0.5f * factor;
    std::fill_n(chosen, dim_, levels[0]);
    for (int i = 0; i + 1 < num_levels; ++i) {
      const float above = levels[i + 1], bound = bounds[i];
      for (std::int64_t k = 0; k < dim_; ++k) chosen[k] = left[k] > bound ? above : chosen[k];
    }
    double products = 0.0, lengths = 0.0;
    for (std::int64_t k = 0; k < dim_; ++k) {
      products += static_cast<double>(left[k]) * chosen[k];
      lengths += static_cast<double>(chosen[k]) * chosen[k];
    }
    factor = static_cast<float>(products / lengths);
  }
  const float rounded = std::floor(factor * kScaleUnit + 0.5f);
  const float within = rounded < kLargestScale ? rounded : kLargestScale;
  *scale = static_cast<std::int16_t>(within > 0.0f ? within : 0.0f);
  std::fill_n(codes, book_.num_bytes, std::uint8_t{0});
  for (std::int64_t k = 0; k < dim_; ++k) {
    int code = 0;
    for (int i = 0; i + 1 < num_levels; ++i) code += left[k] > bounds[i] ? 1 : 0;
    write_code(code, k, codes);
  }
}

void Codec::write_code(int code, std::int64_t k, std::uint8_t* codes) const {
  const int bits = book_.bits == 3 ? 2 : book_.bits;
  const std::int64_t size = small_bytes(dim_, bits);
  codes[k % size] |= static_cast<std::uint8_t>((code & ((1 << bits) - 1)) << (k / size * bits));
  if (book_.bits != 3) return;
  const std::int64_t num_third = book_.num_bytes - size;
  codes[size + k % num_third] |= static_cast<std::uint8_t>((code >> 2) << (k / num_third));
}

std::int64_t DocumentsView::size() const { return is_coded_alone() ? small_->size() : firsts_.size(); }

std::int64_t DocumentsView::dim() const {
  if (is_coded_alone()) return small_->codec().dim();
  return chunks_.empty() ? 0 : chunks_.front().tokens.dim;
}

DocumentsView::Document DocumentsView::document(std::int64_t index) const {
  if (is_coded_alone()) return {nullptr, {0, small_->document(index).tokens.num_rows}, index};
  const ChunkFirsts::Place place = firsts_.find(index);
  const RaggedView& chunk = chunks_[place.chunk];
  return {&chunk, chunk.range(place.inside), index};
}

const std::int64_t* DocumentsView::offsets(std::int64_t index) const {
  if (is_coded_alone()) return small_->offsets(index);
  const ChunkFirsts::Place place = firsts_.find(index);
  return chunks_[place.chunk].offsets + place.inside;
}

SmallDocuments::SmallDocuments(const Codec& codec, std::vector<Part> parts) : codec_(codec), parts_(std::move(parts)) {
  for (const Part& part : parts_) firsts_.append(part.size);
}

SmallDocuments::Document SmallDocuments::document(std::int64_t index) const {
  const ChunkFirsts::Place place = firsts_.find(index);
  const Part& part = parts_[place.chunk];
  const std::int64_t begin = part.offsets[place.inside], end = part.offsets[place.inside + 1];
  if (begin < 0 || end < begin || end > part.num_tokens)
    throw std::invalid_argument("offsets of codes do not ascend within them");
  return {{part.codes + begin * codec_.num_bytes(), part.centroids + begin, part.scales + begin, end - begin},
          part.lengths == nullptr ? nullptr : part.lengths + begin};
}

const std::int64_t* SmallDocuments::offsets(std::int64_t index) const {
  const ChunkFirsts::Place place = firsts_.find(index);
  return parts_[place.chunk].offsets + place.inside;
}

Int8Document SmallReader::int8_rows(const SmallDocuments::Document& document, const SmallDocuments::Document& next) {
  const Codec& codec = documents_.codec();
  const SmallBook book = codec.book();
  const std::int64_t count = document.tokens.num_rows;
  rows_.resize(static_cast<std::size_t>(std::max<std::int64_t>(count, 1) * book.stride));
  sums_.resize(static_cast<std::size_t>(std::max<std::int64_t>(count, 1)));
  scales_.assign(static_cast<std::size_t>(std::max<std::int64_t>(count, 1)), codec.unit());
  const std::int64_t ahead_bytes = next.tokens.num_rows * book.num_bytes;
  for (std::int64_t begin = 0, fetched = 0; begin < count; begin += kRowsAtOnce) {
    for (const std::int64_t end = fetched + kRowsAtOnce * book.num_bytes; fetched < end && fetched < ahead_bytes;
         fetched += kCacheLine)
      prefetch(next.tokens.codes + fetched);
    const SmallCodes some{document.tokens.codes + begin * book.num_bytes, document.tokens.centroids + begin,
                          document.tokens.scales + begin, std::min(kRowsAtOnce, count - begin)};
    if (!kernels_.small_rows(book, some, rows_.data() + begin * book.stride, sums_.data() + begin))
      throw std::invalid_argument("an id is not that of a centroid");
  }
  // Codes beyond dim, which fill the last bytes, stand for nothing.
  for (std::int64_t k = codec.dim(); k < small_columns(book.dim, book.bits); ++k)
    for (std::int64_t t = 0; t < count; ++t) {
      std::int8_t& value = rows_[static_cast<std::size_t>(t * book.stride + k)];
      sums_[t] -= value;
      value = 0;
    }
  if (document.lengths != nullptr)
    for (std::int64_t t = 0; t < count; ++t) scales_[t] *= document.lengths[t];
  return {rows_.data(), scales_.data(), sums_.data(), count, codec.dim(), book.stride, nullptr, 0};
}

void SmallReader::float_rows(const SmallDocuments::Document& document, std::int64_t num_rows, float* out) {
  if (document.tokens.num_rows != num_rows)
    throw std::invalid_argument("offsets of codes changed while they were read");
  const Int8Document rows = int8_rows(document, {{nullptr, nullptr, nullptr, 0}, nullptr});
  for (std::int64_t t = 0; t < rows.num_rows; ++t)
    for (std::int64_t k = 0; k < rows.dim; ++k)
      out[t * rows.dim + k] = static_cast<float>(rows.codes[t * rows.stride + k]) * rows.scales[t];
}

}  // namespace lemur

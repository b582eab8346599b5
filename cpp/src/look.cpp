#include "lemur/look.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "lemur/cpu.hpp"
#include "lemur/kernels/prefetch.hpp"
#include "lemur/parallel.hpp"

// Compiled without fused products and sums, so that all machines give the same bits.

namespace lemur {
namespace {

constexpr std::int64_t kGroup = 32;        // centroids that are compared at once before the best of them is looked for
constexpr std::int64_t kTaskTokens = 256;  // of a task of `nearest`
constexpr std::int64_t kTableRows = 64;    // of similarities that are float before they are bytes
constexpr std::int64_t kAhead = 6;         // documents whose ids are asked for before they are read
constexpr float kFullByte = 255.0f;
constexpr double kLeastDeviation = 4.0;   // of a byte: a token that all match alike must not count for more than others
constexpr std::int64_t kFirstPlaces = 5;  // which differ little

// Of the row's squares; in float64 their products are exact.
double squared_length(const float* row, std::int64_t dim) {
  double total = 0.0;
  for (std::int64_t k = 0; k < dim; ++k) total += static_cast<double>(row[k]) * row[k];
  return total;
}

// Near enough to a logarithm, and the same on every machine, which those of libraries are not.
float logarithm(std::int64_t n) {
  int exponent = 0;
  const double fraction = std::frexp(static_cast<double>(n), &exponent);
  return static_cast<float>(exponent - 2 + 2.0 * fraction);
}

// Mean 0 and deviation 1 of the usual values, which are the first; or all 0 where these are equal.
void standardise(float* values, std::int64_t count) {
  const std::int64_t usual = std::min(count, SecondLook::kUsual);
  double sum = 0.0, squares = 0.0;
  for (std::int64_t i = 0; i < usual; ++i) sum += values[i];
  const double mean = sum / static_cast<double>(usual);
  for (std::int64_t i = 0; i < usual; ++i) squares += (values[i] - mean) * (values[i] - mean);
  const double deviation = std::sqrt(squares / static_cast<double>(usual));
  const double factor = deviation > 1e-6 * std::fabs(mean) && deviation > 1e-30 ? 1.0 / deviation : 0.0;
  for (std::int64_t i = 0; i < count; ++i) values[i] = static_cast<float>((values[i] - mean) * factor);
}

}  // namespace

Centroids::Centroids(const float* rows, std::int64_t size, std::int64_t dim) : size_(size), dim_(dim), rows_(dim) {
  if (size < 1 || size > kMost)
    throw std::invalid_argument("expected 1 to " + std::to_string(kMost) + " centroids, got " + std::to_string(size));
  rows_.append(rows, size);
}

Int8Run Centroids::run(std::int64_t first, std::int64_t count, const std::int64_t* offsets) const {
  Int8Run all = rows_.run(offsets, count);
  all.codes += first * all.stride;
  all.scales += first;
  all.sums += first;
  return all;
}

void Centroids::nearest(const TokenView& tokens, std::uint16_t* out, int num_threads) const {
  if (tokens.dim != dim_) throw std::invalid_argument("tokens and centroids differ in dim");
  const KernelTable& kernels = active_kernels();
  const std::int64_t num_groups = (size_ + kGroup - 1) / kGroup, stride = int8_stride(dim_);
  std::vector<std::int64_t> bounds(static_cast<std::size_t>(num_groups + 1));
  for (std::int64_t g = 0; g <= num_groups; ++g) bounds[g] = std::min(g * kGroup, size_);
  const Int8Run groups = run(0, num_groups, bounds.data());
  struct Scratch {
    std::vector<float> widened, maxima;
    std::vector<std::int8_t> code;
  };
  parallel_for((tokens.num_tokens + kTaskTokens - 1) / kTaskTokens, num_threads, [&] {
    return [&, own = Scratch()](std::int64_t task) mutable {
      const std::int64_t begin = task * kTaskTokens, count = std::min(kTaskTokens, tokens.num_tokens - begin);
      const auto* floats = static_cast<const float*>(tokens.row(begin));
      if (tokens.type == TokenType::kFloat16) {
        own.widened.resize(static_cast<std::size_t>(kTaskTokens * dim_));
        kernels.widen(static_cast<const std::uint16_t*>(tokens.row(begin)), count * dim_, own.widened.data());
        floats = own.widened.data();
      }
      const Int8Panels panels(floats, count, dim_);
      const std::int64_t width = panels.num_panels() * kPanelTokens;
      own.maxima.resize(static_cast<std::size_t>(num_groups * width));
      own.code.assign(static_cast<std::size_t>(stride), 0);
      kernels.int8_maxima(panels.panel(0), panels.num_panels(), groups, own.maxima.data());
      for (std::int64_t t = 0; t < count; ++t) {
        std::int64_t best = 0;
        for (std::int64_t g = 1; g < num_groups; ++g)
          if (own.maxima[g * width + t] > own.maxima[best * width + t]) best = g;
        quantise(floats + t * dim_, dim_, own.code.data());
        const std::int64_t first = bounds[best], size = bounds[best + 1] - first;
        std::int32_t products[kGroup];
        kernels.int8_dots(own.code.data(), groups.codes + first * stride, stride, nullptr, size, products);
        std::int64_t found = 0;
        float largest = 0.0f;
        for (std::int64_t c = 0; c < size; ++c) {
          const float value = static_cast<float>(products[c]) * groups.scales[first + c];
          if (c == 0 || value > largest) {
            largest = value;
            found = c;
          }
        }
        out[begin + t] = static_cast<std::uint16_t>(first + found);
      }
    };
  });
}

void Centroids::compare(const float* tokens, std::int64_t num_tokens, Similarities& out) const {
  const KernelTable& kernels = active_kernels();
  const Int8Panels panels(tokens, num_tokens, dim_);
  const std::int64_t width = panels.num_panels() * kPanelTokens;
  double longest = 0.0;
  for (std::int64_t t = 0; t < num_tokens; ++t) longest = std::max(longest, squared_length(tokens + t * dim_, dim_));
  const float unit = longest > 0.0 ? kFullByte / static_cast<float>(std::sqrt(longest)) : 0.0f;
  std::vector<float> factors(static_cast<std::size_t>(width), 0.0f);
  for (std::int64_t t = 0; t < num_tokens; ++t) factors[t] = panels.scale(t) * unit;
  out.bytes.resize(static_cast<std::size_t>(size_ * width));
  std::vector<std::int32_t> nearest(static_cast<std::size_t>(width), 0);
  std::vector<float> largest(static_cast<std::size_t>(width), -std::numeric_limits<float>::infinity());
  std::vector<float> similarities(static_cast<std::size_t>(kTableRows * width));
  std::int64_t bounds[kTableRows + 1];
  std::iota(bounds, bounds + kTableRows + 1, std::int64_t{0});
  for (std::int64_t first = 0; first < size_; first += kTableRows) {
    const std::int64_t count = std::min(kTableRows, size_ - first);
    kernels.int8_maxima(panels.panel(0), panels.num_panels(), run(first, count, bounds), similarities.data());
    kernels.as_bytes(similarities.data(), count, width, factors.data(), out.bytes.data() + first * width);
    kernels.update_nearest(similarities.data(), count, width, static_cast<std::int32_t>(first), largest.data(),
                           nearest.data());
  }
  out.nearest.assign(nearest.begin(), nearest.begin() + num_tokens);
}

CentroidIds::CentroidIds(const std::uint16_t* ids, std::int64_t num_ids, const std::int64_t* offsets, std::int64_t size,
                         std::int64_t num_centroids)
    : ids_(ids),
      num_ids_(num_ids),
      offsets_(offsets),
      size_(size),
      counts_(static_cast<std::size_t>(num_centroids), 0),
      begins_(static_cast<std::size_t>(num_centroids), 0) {
  if (size > std::numeric_limits<std::int32_t>::max())
    throw std::invalid_argument("more documents than an int32 numbers");
  std::vector<std::int32_t> last(static_cast<std::size_t>(num_centroids),
                                 -1);  // document that each centroid was seen in
  const auto for_each_pair = [&](const auto& take) {
    std::fill(last.begin(), last.end(), -1);
    for (std::int64_t i = 0; i < size_; ++i) {
      const Tokens tokens = document(i);
      for (std::int64_t t = 0; t < tokens.size; ++t) {
        const std::uint16_t id = tokens.begin[t];
        if (id >= num_centroids) throw std::invalid_argument("an id is not that of a centroid");
        if (last[id] == i) continue;
        last[id] = static_cast<std::int32_t>(i);
        take(id, static_cast<std::int32_t>(i));
      }
    }
  };
  for_each_pair([&](std::uint16_t id, std::int32_t) { ++counts_[id]; });
  std::int64_t end = 0;
  for (std::int64_t c = 0; c < num_centroids; ++c) {
    begins_[c] = end;
    if (counts_[c] <= kMostListed) end += counts_[c];
  }
  listed_.resize(static_cast<std::size_t>(end));
  std::vector<std::int64_t> next = begins_;
  for_each_pair([&](std::uint16_t id, std::int32_t i) {
    if (counts_[id] <= kMostListed) listed_[next[id]++] = i;
  });
}

CentroidIds::Tokens CentroidIds::document(std::int64_t i) const {
  const std::int64_t begin = offsets_[i], end = offsets_[i + 1];
  if (begin < 0 || end < begin || end > num_ids_)
    throw std::invalid_argument("offsets of centroids do not ascend within them");
  return {ids_ + begin, end - begin};
}

SecondLook::SecondLook(const Centroids& centroids, std::vector<const CentroidIds*> parts)
    : centroids_(centroids), parts_(std::move(parts)) {
  for (const CentroidIds* part : parts_) {
    if (part->num_centroids() != centroids.size()) throw std::invalid_argument("ids are of other centroids");
    firsts_.append(part->size());
  }
}

void SecondLook::add_rare(const Centroids::Similarities& query, std::int64_t most, const std::uint8_t* excluded,
                          Shortlist& shortlist) const {
  shortlist.num_estimated = static_cast<std::int64_t>(shortlist.rows.size());
  std::vector<std::pair<std::int64_t, std::int32_t>> lists;  // how many documents, and the centroid
  for (const std::int32_t centroid : query.nearest) {
    std::int64_t count = 0;
    for (const CentroidIds* part : parts_) {
      const std::int64_t own = part->of_centroid(centroid).size;
      count += own <= CentroidIds::kMostListed ? own : most + 1;
    }
    if (count > 0 && count <= most) lists.emplace_back(count, centroid);
  }
  std::sort(lists.begin(), lists.end());
  lists.erase(std::unique(lists.begin(), lists.end()), lists.end());
  // One bit a document, of those that are there already; all zero again at the end.
  static thread_local std::vector<std::uint64_t> there;
  there.resize(std::max(there.size(), static_cast<std::size_t>(size() / 64 + 1)));
  for (const std::int64_t row : shortlist.rows) there[row / 64] |= std::uint64_t{1} << (row % 64);
  for (const auto& [count, centroid] : lists) {
    if (count > most) break;
    most -= count;
    std::int64_t first = 0;
    for (const CentroidIds* part : parts_) {
      const CentroidIds::Documents documents = part->of_centroid(centroid);
      for (std::int64_t i = 0; i < documents.size; ++i) {
        const std::int64_t row = first + documents.begin[i];
        std::uint64_t& word = there[row / 64];
        const std::uint64_t bit = std::uint64_t{1} << (row % 64);
        if ((word & bit) != 0 || (excluded != nullptr && excluded[row] != 0)) continue;
        word |= bit;
        shortlist.rows.push_back(row);
      }
      first += part->size();
    }
  }
  for (const std::int64_t row : shortlist.rows) there[row / 64] = 0;
}

// Where reads go to the disk, asks for the offsets of documents, and then for the ids that they lead to.
void SecondLook::ask_for(const std::vector<std::int64_t>& rows) const {
  if (!disk_reads_.are_likely()) return;
  PageRanges ranges;
  for (const std::int64_t row : rows) {
    const ChunkFirsts::Place place = firsts_.find(row);
    ranges.add(parts_[place.chunk]->offsets(place.inside), 2 * sizeof(std::int64_t));
  }
  ranges.ask();
  for (const std::int64_t row : rows) {
    const ChunkFirsts::Place place = firsts_.find(row);
    const CentroidIds::Tokens tokens = parts_[place.chunk]->document(place.inside);
    ranges.add(tokens.begin, 2 * tokens.size);
  }
  ranges.ask();
}

void SecondLook::features(const Centroids::Similarities& query, const Shortlist& shortlist,
                          std::vector<float>& out) const {
  const KernelTable& kernels = active_kernels();
  const auto num_tokens = static_cast<std::int64_t>(query.nearest.size());
  const auto count = static_cast<std::int64_t>(shortlist.rows.size());
  out.assign(static_cast<std::size_t>(kFeatures * count), 0.0f);
  if (count == 0) return;
  const DiskReads::Watch watch(disk_reads_);
  ask_for(shortlist.rows);
  const std::int64_t width = panels_of(num_tokens) * kPanelTokens;
  float *places = out.data(), *sums = places + count, *standard = sums + count, *sharp = standard + count,
        *lengths = sharp + count;

  std::vector<CentroidIds::Tokens> ids(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) {
    const ChunkFirsts::Place place = firsts_.find(shortlist.rows[i]);
    ids[i] = parts_[place.chunk]->document(place.inside);
    places[i] = logarithm(std::min(i, shortlist.num_estimated) + 1 + kFirstPlaces);
    lengths[i] = logarithm(std::max<std::int64_t>(ids[i].size, 1));
  }

  std::vector<std::uint8_t> maxima(static_cast<std::size_t>(count * width));
  for (std::int64_t i = 0; i < count; ++i) {
    if (i + kAhead < count) {
      const CentroidIds::Tokens& next = ids[i + kAhead];
      for (std::int64_t byte = 0; byte < 2 * next.size; byte += kCacheLine)
        prefetch(reinterpret_cast<const char*>(next.begin) + byte);
    }
    if (!kernels.byte_maxima(query.bytes.data(), width, centroids_.size(), ids[i].begin, ids[i].size,
                             maxima.data() + i * width))
      throw std::invalid_argument("an id is not that of a centroid");
  }

  // How each query token's maxima are standardised, in units of 1/64, by the usual documents.
  const std::int64_t usual = std::min(count, kUsual);
  std::vector<std::int32_t> totals(static_cast<std::size_t>(width), 0), squares(totals);
  for (std::int64_t i = 0; i < usual; ++i)
    for (std::int64_t t = 0; t < width; ++t) {
      const std::int32_t value = maxima[i * width + t];
      totals[t] += value;
      squares[t] += value * value;
    }
  std::vector<std::int16_t> means(static_cast<std::size_t>(width), 0), factors(means);
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    const double mean = static_cast<double>(totals[t]) / static_cast<double>(usual);
    const double variance = static_cast<double>(squares[t]) / static_cast<double>(usual) - mean * mean;
    means[t] = static_cast<std::int16_t>(64.0 * mean + 0.5);
    factors[t] = static_cast<std::int16_t>(65536.0 / (std::sqrt(std::max(variance, 0.0)) + kLeastDeviation));
  }
  for (std::int64_t i = 0; i < count; ++i) {
    std::int64_t found[3];
    kernels.match_sums(maxima.data() + i * width, width, means.data(), factors.data(), found);
    sums[i] = static_cast<float>(found[0]);
    standard[i] = static_cast<float>(found[1]);
    sharp[i] = static_cast<float>(std::sqrt(static_cast<double>(found[2])));
  }
  for (float* values : {sums, standard, sharp, lengths}) standardise(values, count);
}

void SecondLook::scores(const Centroids::Similarities& query, const Shortlist& shortlist, const LookWeights& weights,
                        std::vector<float>& out) const {
  const auto count = static_cast<std::int64_t>(shortlist.rows.size());
  std::vector<float> known;
  features(query, shortlist, known);
  out.assign(static_cast<std::size_t>(count), 0.0f);
  std::vector<float> unit(static_cast<std::size_t>(count));
  for (std::int64_t h = 0; h < weights.hidden; ++h) {
    std::fill(unit.begin(), unit.end(), weights.bias[h]);
    for (std::int64_t f = 0; f < kFeatures; ++f) {
      const float weight = weights.input[h * kFeatures + f];
      const float* feature = known.data() + f * count;
      for (std::int64_t i = 0; i < count; ++i) unit[i] += weight * feature[i];
    }
    for (std::int64_t i = 0; i < count; ++i) out[i] += weights.output[h] * (unit[i] > 0.0f ? unit[i] : 0.0f);
  }
}

}  // namespace lemur

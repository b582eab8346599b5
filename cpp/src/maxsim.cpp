#include "lemur/maxsim.hpp"

#include <algorithm>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>

#include "lemur/cpu.hpp"
#include "lemur/int8.hpp"
#include "lemur/parallel.hpp"
#include "lemur/scored.hpp"
#include "lemur/scorer.hpp"

namespace lemur {
namespace {

// A task of a full scan: enough tokens to pay for walking over all query panels once.
constexpr std::int64_t kTaskTokens = 2048;

// The tokens of a run of documents as float32: read in place where they are stored so, widened once where they are not.
class FloatRun {
 public:
  struct Matrix {
    const float* tokens;
    std::int64_t num_tokens;
  };

  const std::vector<Matrix>& read(const KernelTable& kernels, const DocumentsView& documents, std::int64_t begin,
                                  std::int64_t end) {
    matrices_.clear();
    documents_.clear();
    std::int64_t half_values = 0;
    for (std::int64_t i = begin; i < end; ++i) {
      documents_.push_back(documents.document(i));  // read once: the sizes allocated for are the sizes written
      const RaggedView* chunk = documents_.back().chunk;
      if (chunk == nullptr || chunk->tokens.type == TokenType::kFloat16)
        half_values += documents_.back().range.size() * documents.dim();
    }
    widened_.resize(static_cast<std::size_t>(half_values));
    float* free = widened_.data();
    for (const auto& document : documents_) {
      if (document.chunk == nullptr) {
        if (!reader_) reader_.emplace(kernels, *documents.small());
        reader_->float_rows(documents.small()->document(document.index), document.range.size(), free);
        matrices_.push_back({free, document.range.size()});
        free += document.range.size() * documents.dim();
        continue;
      }
      const void* data = document.chunk->tokens.row(document.range.begin);
      const std::int64_t size = document.range.size();
      if (document.chunk->tokens.type == TokenType::kFloat32) {
        matrices_.push_back({static_cast<const float*>(data), size});
      } else {
        kernels.widen(static_cast<const std::uint16_t*>(data), size * documents.dim(), free);
        matrices_.push_back({free, size});
        free += size * documents.dim();
      }
    }
    return matrices_;
  }

 private:
  std::vector<DocumentsView::Document> documents_;
  std::vector<Matrix> matrices_;
  std::vector<float> widened_;
  std::optional<SmallReader> reader_;
};

// The documents cut into runs of about kTaskTokens tokens: run i is documents [cuts[i], cuts[i + 1]).
std::vector<std::int64_t> cut_into_tasks(const DocumentsView& documents) {
  std::vector<std::int64_t> cuts{0};
  std::int64_t tokens = 0;
  for (std::int64_t i = 0; i < documents.size(); ++i) {
    tokens += documents.document(i).range.size();
    if (tokens >= kTaskTokens) {
      cuts.push_back(i + 1);
      tokens = 0;
    }
  }
  if (cuts.back() < documents.size()) cuts.push_back(documents.size());
  return cuts;
}

constexpr std::int64_t kGroupPanels = 2;  // panels that stay in the first-level cache over a run of documents
constexpr std::int64_t kGroupTokens = kGroupPanels * kPanelTokens;

// Copies the maxima of one group of panels, best[i * width + t], to where they belong; writes along the rows of the
// result, whichever way these run.
void store_group(const float* best, std::int64_t width, std::int64_t num_tokens, std::int64_t num_documents,
                 const MaximaLayout& out) {
  if (out.token_stride == 1) {
    for (std::int64_t i = 0; i < num_documents; ++i)
      std::copy_n(best + i * width, num_tokens, out.data + i * out.document_stride);
    return;
  }
  for (std::int64_t t = 0; t < num_tokens; ++t)
    for (std::int64_t i = 0; i < num_documents; ++i)
      out.data[t * out.token_stride + i * out.document_stride] = best[i * width + t];
}

MaximaLayout part(const MaximaLayout& out, std::int64_t token, std::int64_t document) {
  return {out.data + token * out.token_stride + document * out.document_stride, out.token_stride, out.document_stride};
}

void token_maxima_float32(const float* x, std::int64_t num_x, std::int64_t dim, const DocumentsView& documents,
                          const MaximaLayout& out, int num_threads) {
  const std::vector<float> panels = pack(x, num_x, dim);
  const std::vector<std::int64_t> cuts = cut_into_tasks(documents);
  const KernelTable& kernels = active_kernels();
  parallel_for(static_cast<std::int64_t>(cuts.size()) - 1, num_threads, [&] {
    return [&, run = FloatRun(), best = std::vector<float>()](std::int64_t task) mutable {
      const std::int64_t begin = cuts[task], size = cuts[task + 1] - begin;
      const auto& matrices = run.read(kernels, documents, begin, cuts[task + 1]);
      for (std::int64_t t = 0; t < num_x; t += kGroupTokens) {
        const std::int64_t num_tokens = std::min(kGroupTokens, num_x - t), num_panels = panels_of(num_tokens);
        const std::int64_t width = num_panels * kPanelTokens;
        best.assign(static_cast<std::size_t>(size * width), kNone);
        for (std::int64_t i = 0; i < size; ++i)
          kernels.update_maxima(panels.data() + t * dim, num_panels, matrices[i].tokens, matrices[i].num_tokens, dim,
                                best.data() + i * width);
        store_group(best.data(), width, num_tokens, size, part(out, t, begin));
      }
    };
  });
}

void token_maxima_int8(const float* x, std::int64_t num_x, std::int64_t dim, const DocumentsView& documents,
                       const MaximaLayout& out, int num_threads) {
  const Int8Panels panels(x, num_x, dim);
  const std::vector<std::int64_t> cuts = cut_into_tasks(documents);
  const KernelTable& kernels = active_kernels();
  parallel_for(static_cast<std::int64_t>(cuts.size()) - 1, num_threads, [&] {
    return [&, run = FloatRun(), rows = Int8Rows(dim), offsets = std::vector<std::int64_t>(),
            best = std::vector<float>()](std::int64_t task) mutable {
      const std::int64_t begin = cuts[task], size = cuts[task + 1] - begin;
      rows.clear();
      offsets.assign(1, 0);
      for (const FloatRun::Matrix& matrix : run.read(kernels, documents, begin, cuts[task + 1])) {
        rows.append(matrix.tokens, matrix.num_tokens);
        offsets.push_back(offsets.back() + matrix.num_tokens);
      }
      const Int8Run codes = rows.run(offsets.data(), size);
      for (std::int64_t t = 0; t < num_x; t += kGroupTokens) {
        const std::int64_t num_tokens = std::min(kGroupTokens, num_x - t), num_panels = panels_of(num_tokens);
        const std::int64_t width = num_panels * kPanelTokens;
        best.resize(static_cast<std::size_t>(size * width));
        kernels.int8_maxima(panels.panel(t / kPanelTokens), num_panels, codes, best.data());
        // A query token's scale is positive and the same for all that it meets, so it can wait for the maximum.
        for (std::int64_t i = 0; i < size; ++i)
          for (std::int64_t j = 0; j < num_tokens; ++j) best[i * width + j] *= panels.scale(t + j);
        store_group(best.data(), width, num_tokens, size, part(out, t, begin));
      }
    };
  });
}

}  // namespace

void token_maxima(const float* x, std::int64_t num_x, std::int64_t dim, const DocumentsView& documents,
                  const MaximaLayout& out, Precision precision, int num_threads) {
  check_dim(dim, documents);
  std::vector<float> turned;
  if (const Codec* codec = turned_by(documents)) {
    turned.resize(static_cast<std::size_t>(num_x * dim));
    codec->turn_query(x, num_x, turned.data());
    x = turned.data();
  }
  const auto compute = precision == Precision::kInt8 ? token_maxima_int8 : token_maxima_float32;
  compute(x, num_x, dim, documents, out, num_threads);
}

void scores(const RaggedView& queries, const DocumentsView& documents, float* out, int num_threads) {
  check_dim(queries.tokens.dim, documents);
  const std::vector<PackedQuery> packed = pack_queries(TurnedQueries(queries, turned_by(documents)).view());
  const std::vector<std::int64_t> cuts = cut_into_tasks(documents);
  const KernelTable& kernels = active_kernels();
  parallel_for(static_cast<std::int64_t>(cuts.size()) - 1, num_threads, [&] {
    return [&, run = FloatRun(), best = std::vector<float>()](std::int64_t task) mutable {
      const std::int64_t begin = cuts[task];
      // The run is read, and widened, once for all queries.
      const auto& matrices = run.read(kernels, documents, begin, cuts[task + 1]);
      for (std::int64_t i = 0; i < queries.size; ++i) {
        const PackedQuery& query = packed[i];
        float* row = out + i * documents.size() + begin;
        for (const FloatRun::Matrix& matrix : matrices) {
          best.assign(static_cast<std::size_t>(query.num_panels() * kPanelTokens), kNone);
          kernels.update_maxima(query.panels.data(), query.num_panels(), matrix.tokens, matrix.num_tokens,
                                queries.tokens.dim, best.data());
          *row++ = sum(best.data(), query.num_tokens);
        }
      }
    };
  });
}

void candidate_scores(const RaggedView& queries, const DocumentsView& documents, const std::int64_t* candidates,
                      const std::int64_t* candidate_offsets, float* out, int num_threads) {
  check_dim(queries.tokens.dim, documents);
  const std::vector<PackedQuery> packed = pack_queries(TurnedQueries(queries, turned_by(documents)).view());
  const KernelTable& kernels = active_kernels();
  constexpr std::int64_t kTaskCandidates = 16;  // of one query, so that each can fetch the next
  struct Task {
    std::int64_t query, begin, end;
  };
  std::vector<Task> tasks;
  for (std::int64_t i = 0; i < queries.size; ++i)
    for (std::int64_t c = candidate_offsets[i]; c < candidate_offsets[i + 1]; c += kTaskCandidates)
      tasks.push_back({i, c, std::min(c + kTaskCandidates, candidate_offsets[i + 1])});
  parallel_for(static_cast<std::int64_t>(tasks.size()), num_threads, [&] {
    return [&, score = Scorer(kernels, documents)](std::int64_t t) mutable {
      const Task& task = tasks[t];
      auto next = documents.document(candidates[task.begin]);
      for (std::int64_t c = task.begin; c < task.end; ++c) {
        const auto document = next;
        if (c + 1 < task.end) next = documents.document(candidates[c + 1]);
        out[c] = score(packed[task.query], document, next);
      }
    };
  });
}

std::vector<std::int64_t> top_k(const float* values, std::int64_t size, std::int64_t k) {
  std::vector<std::int64_t> order;
  order.reserve(static_cast<std::size_t>(size));
  for (std::int64_t i = 0; i < size; ++i)
    if (values[i] > kNone) order.push_back(i);
  const auto better = [values](std::int64_t a, std::int64_t b) {
    return Better()(Scored<std::int64_t>{values[a], a}, Scored<std::int64_t>{values[b], b});
  };
  const auto end =
      order.begin() + std::min<std::int64_t>(std::max<std::int64_t>(k, 0), static_cast<std::int64_t>(order.size()));
  std::partial_sort(order.begin(), end, order.end(), better);
  order.erase(end, order.end());
  return order;
}

}  // namespace lemur

#include "lemur/products.hpp"

#include <algorithm>
#include <vector>

#include "lemur/cpu.hpp"
#include "lemur/parallel.hpp"

namespace lemur {
namespace {

constexpr std::int64_t kDepth = 512;           // of a run: a group of panels of this depth is 64 KiB
constexpr std::int64_t kStride = kDepth + 16;  // not a power of two, so that the rows of a tile do not share cache sets
constexpr std::int64_t kGroupPanels = 2;
constexpr std::int64_t kWidth = kGroupPanels * kPanelTokens;
constexpr std::int64_t kRows = 192;  // of a block: a multiple of every kernel's tile, 396 KiB at this stride

}  // namespace

// Groups of panels, run by run: group g of run k begins at (k * groups + g) * kWidth * kDepth.
Columns::Columns(const float* b, std::int64_t num_columns, std::int64_t depth, int num_threads)
    : num_columns_(num_columns), depth_(depth) {
  const std::int64_t groups = (num_columns + kWidth - 1) / kWidth, runs = (depth + kDepth - 1) / kDepth;
  packed_.resize(static_cast<std::size_t>(runs * groups * kWidth * kDepth));
  parallel_for(runs, num_threads, [&] {
    return [&](std::int64_t k) {
      const std::int64_t run = std::min(kDepth, depth - k * kDepth);
      float* out = packed_.data() + k * groups * kWidth * kDepth;
      for (std::int64_t i = 0; i < run; ++i)
        for (std::int64_t c = 0; c < num_columns; ++c)
          out[c / kWidth * kWidth * kDepth + (c % kWidth / kPanelTokens * run + i) * kPanelTokens + c % kPanelTokens] =
              b[(k * kDepth + i) * num_columns + c];
    };
  });
}

void products(const float* a, std::int64_t num_a, const Columns& b, double* out, int num_threads) {
  const KernelTable& kernels = active_kernels();
  const std::int64_t num_b = b.num_columns(), depth = b.depth();
  std::fill(out, out + num_a * num_b, 0.0);
  // A task is a block of rows of a times a share of the columns of b; a few rows alone are shared out by columns.
  const std::int64_t row_blocks = (num_a + kRows - 1) / kRows, groups = (num_b + kWidth - 1) / kWidth;
  const std::int64_t shares = row_blocks == 0 ? 0 : std::min(groups, (num_threads + row_blocks - 1) / row_blocks);
  parallel_for(row_blocks * shares, num_threads, [&] {
    return [&, rows = std::vector<float>(kRows * kStride),
            sums = std::vector<float>(kRows * kWidth)](std::int64_t task) mutable {
      const std::int64_t row = task / shares * kRows, num_rows = std::min(kRows, num_a - row);
      const std::int64_t first = task % shares * groups / shares, last = (task % shares + 1) * groups / shares;
      for (std::int64_t k = 0; k < depth; k += kDepth) {
        const std::int64_t run = std::min(kDepth, depth - k);
        // Copied once for all groups of columns, to rows kStride apart whatever the depth is.
        for (std::int64_t j = 0; j < num_rows; ++j)
          std::copy_n(a + (row + j) * depth + k, run, rows.data() + j * kStride);
        for (std::int64_t group = first; group < last; ++group) {
          const std::int64_t column = group * kWidth, columns = std::min(kWidth, num_b - column);
          kernels.products(b.data() + (k / kDepth * groups + group) * kWidth * kDepth, kGroupPanels, rows.data(),
                           num_rows, kStride, run, sums.data());
          for (std::int64_t j = 0; j < num_rows; ++j)
            for (std::int64_t c = 0; c < columns; ++c) out[(row + j) * num_b + column + c] += sums[j * kWidth + c];
        }
      }
    };
  });
}

}  // namespace lemur

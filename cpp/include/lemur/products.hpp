// A matrix product whose every element is the same to the last bit whatever stands beside it: any batch, any threads.
#pragma once

#include <cstdint>
#include <vector>

namespace lemur {

// b, (depth, num_columns) row-major, as the kernels read it. To pack it takes longer than to multiply a few rows by it.
class Columns {
 public:
  Columns(const float* b, std::int64_t num_columns, std::int64_t depth, int num_threads);
  std::int64_t num_columns() const { return num_columns_; }
  std::int64_t depth() const { return depth_; }
  const float* data() const { return packed_.data(); }

 private:
  std::int64_t num_columns_;
  std::int64_t depth_;
  std::vector<float> packed_;
};

// out[j, i] = sum over k of a[j, k] * b[k, i]; a is (num_a, depth), out is (num_a, num_columns), row-major. Products
// are summed in float32 over runs of 512 components, and the runs in float64.
void products(const float* a, std::int64_t num_a, const Columns& b, double* out, int num_threads);

}  // namespace lemur

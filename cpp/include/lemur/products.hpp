// A matrix product whose every element is the same to the last bit whatever stands beside it: any batch, any threads.
#pragma once

#include <cstdint>

namespace lemur {

// out[j, i] = sum over k of a[j, k] * b[k, i]; a is (num_a, depth), b is (depth, num_b), out is (num_a, num_b), all
// row-major. Products are summed in float32 over runs of 512 components, and the runs in float64.
void products(const float* a, std::int64_t num_a, const float* b, std::int64_t num_b, std::int64_t depth, double* out,
              int num_threads);

}  // namespace lemur

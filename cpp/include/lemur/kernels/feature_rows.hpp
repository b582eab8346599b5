// Activations and layer normalisation of one token's features, in plain loops that compilers turn into vectors.
#pragma once

#include "lemur/kernels/table.hpp"

namespace lemur {
namespace {  // internal linkage: every instruction set keeps its own copy

inline float float_of(std::int32_t bits) {
  union {
    std::int32_t bits;
    float value;
  } out;
  out.bits = bits;
  return out.value;
}

// e^x to a relative error of 2e-7, for -87 <= x <= 88; smaller and larger x count as these, so that n + 127 is the
// exponent of a normal number. x is n ln 2 + r, and e^r a polynomial.
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float turns = x * 1.44269504f + (x < 0.0f ? -0.5f : 0.5f);
  const std::int32_t n = static_cast<std::int32_t>(turns);
  const float whole = static_cast<float>(n);
  const float r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;  // ln 2 in two parts (Cephes)
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * float_of((n + 127) << 23);
}

// Abramowitz and Stegun 7.1.26: the error function to 1.5e-7, for z >= 0, as its complement.
inline float one_minus_erf(float z) {
  const float t = 1.0f / (1.0f + 0.3275911f * z);
  float p = 1.061405429f;
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  return p * t * exponential(-z * z);
}

// x times the normal distribution function, by its smaller tail: 1 + erf would cancel where x is well below 0.
inline float gelu(float x) {
  const float magnitude = x < 0.0f ? -x : x;
  const float tail = 0.5f * one_minus_erf(magnitude * 0.70710678f);
  return x < 0.0f ? x * tail : x - x * tail;
}

inline float relu(float x) { return x < 0.0f ? 0.0f : x; }
inline float silu(float x) { return x / (1.0f + exponential(-x)); }
// x tanh(ln(1 + e^x)) without the logarithm; from 20 on the quotient is 1 in float32.
inline float mish(float x) {
  const float e = exponential(x < 20.0f ? x : 20.0f), n = e * (e + 2.0f);
  return x * (n / (n + 2.0f));
}

void activate(float* x, std::int64_t size, Activation activation, float scale) {
  switch (activation) {
    case Activation::kGelu:
      for (std::int64_t i = 0; i < size; ++i) x[i] = scale * gelu(x[i]);
      break;
    case Activation::kRelu:
      for (std::int64_t i = 0; i < size; ++i) x[i] = scale * relu(x[i]);
      break;
    case Activation::kSilu:
      for (std::int64_t i = 0; i < size; ++i) x[i] = scale * silu(x[i]);
      break;
    case Activation::kMish:
      for (std::int64_t i = 0; i < size; ++i) x[i] = scale * mish(x[i]);
      break;
  }
}

inline float square_root(float x) {  // Newton's method, since <cmath> stays outside
  float y = x > 1.0f ? x : 1.0f;
  for (int step = 0; step < 64; ++step) {
    const float next = 0.5f * (y + x / y);
    if (next >= y) break;
    y = next;
  }
  return y;
}

// To mean 0 and variance 1, then times `weight` plus `bias`, where these are not null.
void normalise(float* x, std::int64_t size, const float* weight, const float* bias, float epsilon) {
  constexpr int kParts = 32;  // partial sums: compilers may not reorder one sum, and so not make vectors of it
  float sums[kParts] = {}, squares[kParts] = {};
  const std::int64_t whole = size / kParts * kParts;
  for (std::int64_t i = 0; i < whole; i += kParts)
    for (int j = 0; j < kParts; ++j) sums[j] += x[i + j];
  for (std::int64_t i = whole; i < size; ++i) sums[i - whole] += x[i];
  float mean = 0.0f;
  for (const float s : sums) mean += s;
  mean /= static_cast<float>(size);
  for (std::int64_t i = 0; i < size; ++i) x[i] -= mean;
  for (std::int64_t i = 0; i < whole; i += kParts)
    for (int j = 0; j < kParts; ++j) squares[j] += x[i + j] * x[i + j];
  for (std::int64_t i = whole; i < size; ++i) squares[i - whole] += x[i] * x[i];
  float variance = 0.0f;
  for (const float s : squares) variance += s;
  const float inverse = 1.0f / square_root(variance / static_cast<float>(size) + epsilon);
  if (weight == nullptr)
    for (std::int64_t i = 0; i < size; ++i) x[i] *= inverse;
  else
    for (std::int64_t i = 0; i < size; ++i) x[i] = x[i] * inverse * weight[i] + bias[i];
}

}  // namespace
}  // namespace lemur

// Documents as small codes, in arrays of the caller, which stay alive with this object.
#pragma once

#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "array_args.hpp"
#include "lemur/codec.hpp"

namespace lemur_bindings {

using Bytes = ArrayArg<std::uint8_t, 2>;
using Words = ArrayArg<std::uint16_t, 1>;
using SignedWords = ArrayArg<std::int16_t, 1>;

// Codes, centroids, scales, lengths or none where all are 1, and where each document begins.
using SmallPart = std::tuple<Bytes, Words, SignedWords, std::optional<FloatVector>, Int64Vector>;

class SmallCodesOfDocuments {
 public:
  SmallCodesOfDocuments(const lemur::Codec& codec, std::vector<SmallPart> parts)
      : parts_(std::move(parts)), view_(codec, views(codec, parts_)) {}

  const lemur::SmallDocuments& view() const { return view_; }

 private:
  static std::vector<lemur::SmallDocuments::Part> views(const lemur::Codec& codec, const std::vector<SmallPart>& parts);

  std::vector<SmallPart> parts_;
  lemur::SmallDocuments view_;
};

}  // namespace lemur_bindings

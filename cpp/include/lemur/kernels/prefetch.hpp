// Asks for memory that will be read soon; a hint, nothing where the compiler has no word for it. Static, since kernels
// include it (kernels/table.hpp).
#pragma once

#include <cstdint>

namespace lemur {

static constexpr std::int64_t kCacheLine = 64;

static inline void prefetch([[maybe_unused]] const void* p) {
#if defined(__GNUC__)
  __builtin_prefetch(p);
#endif
}

}  // namespace lemur

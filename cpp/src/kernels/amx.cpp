// x86-64 with AVX-512, VNNI and the int8 tiles of AMX, under Linux: elsewhere nobody has tried them.
#if defined(__x86_64__) && defined(__linux__)

#include "lemur/kernels/amx_int8.hpp"
#include "lemur/kernels/vnni.hpp"

namespace lemur {
namespace {

struct Amx {
  // Palette 1, and eight whole tiles: 16 rows of 64 bytes.
  static void configure() {
    struct alignas(64) Shape {
      std::uint8_t palette, start_row, reserved[14];
      std::uint16_t row_bytes[16];
      std::uint8_t rows[16];
    };
    // Static, since GCC's intrinsic tells the compiler of its first bytes only.
    static const Shape kShape = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&kShape);
  }
  static void release() { _tile_release(); }  // or the system saves 8 KiB of tiles at every switch of tasks

  // The intrinsics want the numbers of tiles spelled out.
  template <int t>
  static void zero() {
    if constexpr (t == 0) _tile_zero(0);
    if constexpr (t == 1) _tile_zero(1);
    if constexpr (t == 2) _tile_zero(2);
    if constexpr (t == 3) _tile_zero(3);
  }
  template <int t>
  static void load(const std::int8_t* p, std::int64_t stride_bytes) {
    if constexpr (t == 4) _tile_loadd(4, p, stride_bytes);
    if constexpr (t == 5) _tile_loadd(5, p, stride_bytes);
    if constexpr (t == 6) _tile_loadd(6, p, stride_bytes);
    if constexpr (t == 7) _tile_loadd(7, p, stride_bytes);
  }
  template <int t>
  static void store(std::int32_t* p, std::int64_t stride_bytes) {
    if constexpr (t == 0) _tile_stored(0, p, stride_bytes);
    if constexpr (t == 1) _tile_stored(1, p, stride_bytes);
    if constexpr (t == 2) _tile_stored(2, p, stride_bytes);
    if constexpr (t == 3) _tile_stored(3, p, stride_bytes);
  }
  template <int sum>  // of tile 4 or 5, by 6 or 7
  static void dot() {
    if constexpr (sum == 0) _tile_dpbssd(0, 4, 6);
    if constexpr (sum == 1) _tile_dpbssd(1, 5, 6);
    if constexpr (sum == 2) _tile_dpbssd(2, 4, 7);
    if constexpr (sum == 3) _tile_dpbssd(3, 5, 7);
  }
};

}  // namespace

// One vector by many would leave a tile nearly empty, so these products are VNNI's.
const KernelTable kAmxKernels = {"amx",
                                 update_maxima<Avx512>,
                                 products<Avx512>,
                                 amx_int8_maxima<Amx, Avx512Codes>,
                                 int8_document<Vnni>,
                                 int8_dots<Vnni>,
                                 activate,
                                 normalise,
                                 widen,
                                 as_bytes,
                                 update_nearest,
                                 byte_maxima<Bytes32>,
                                 match_sums,
                                 small_rows_64};

}  // namespace lemur

#endif

// The matrix unit of some processors with AVX-512: eight tiles of up to 16 rows of 64 bytes.
//
// Before anything here, machine_has_amx() must have said yes. Where the compiler makes no AVX-512 there is nothing
// here.
#pragma once

#include "common/vec.h"

#if defined(__AVX512F__)

namespace fastssl {
namespace FASTSSL_ISA {

inline constexpr int64_t kTileRows = 16, kTileBytes = 64;

struct TileShape {
  int64_t rows, row_bytes;
};

// The shapes of all tiles, for as long as it lives, in one thread. An empty tile must not be used.
class Tiles {
 public:
  explicit Tiles(const TileShape (&shapes)[8]) {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) {
      const bool empty = shapes[i].rows == 0 || shapes[i].row_bytes == 0;
      config.rows[i] = static_cast<uint8_t>(empty ? 0 : shapes[i].rows);
      config.row_bytes[i] = static_cast<uint16_t>(empty ? 0 : shapes[i].row_bytes);
    }
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  ~Tiles() {
    asm volatile("tilerelease");
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// Reads or writes rows that are `stride` bytes apart.
template <int kTile>
FASTSSL_INLINE void load_tile(const void* rows, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(rows), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
FASTSSL_INLINE void store_tile(void* rows, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(rows), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
FASTSSL_INLINE void clear_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}

// sums[i][j] += the products of row i of the left tile with column j of the right one, whose rows hold four bytes of
// every column, or two bfloat16. Signed and unsigned bytes.
template <int kSums, int kLeft, int kRight>
FASTSSL_INLINE void multiply_bytes() {
  asm volatile("tdpbsud %%tmm%c0, %%tmm%c1, %%tmm%c2" ::"i"(kRight), "i"(kLeft), "i"(kSums));
}
template <int kSums, int kLeft, int kRight>
FASTSSL_INLINE void multiply_bfloat16() {
  asm volatile("tdpbf16ps %%tmm%c0, %%tmm%c1, %%tmm%c2" ::"i"(kRight), "i"(kLeft), "i"(kSums));
}

// body(Count<0>), ..., body(Count<kCount - 1>), at most four.
template <int kCount, class Body>
FASTSSL_INLINE void for_each_tile(Body body) {
  static_assert(kCount >= 1 && kCount <= 4);
  body(Count<0>{});
  if constexpr (kCount > 1) body(Count<1>{});
  if constexpr (kCount > 2) body(Count<2>{});
  if constexpr (kCount > 3) body(Count<3>{});
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl

#endif

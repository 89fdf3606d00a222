// `Product` of cells.h on tiles, for up to 16 rows of pairs of bfloat16.
#pragma once

#include <cstdint>
#include <cstring>

#include <blip_fast/cells.h>
#include <blip_fast/dot.h>
#include <blip_fast/tile.h>

namespace blip_fast {

// Cells as the tiles multiply them, in plain C++.
struct PlainPairCells {
  using Element = BFloat16;
  static constexpr int kWidth = 16;
  static constexpr int kDepth = 2;
  static constexpr int kPieces = 1;

  static BLIP_FAST_INLINE void load(const BFloat16* from, int64_t count, u32<16> (&cells)[1]) {
    cells[0] = load_bits<16>(from, count);
  }
  static BLIP_FAST_INLINE void store_row(uint32_t* cells, const f32<16>& a, const f32<16>& b) {
    const u32<16> packed = Storage<16, BFloat16>::narrow(
        {__builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
         __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)});
    std::memcpy(cells, &packed, sizeof packed);
  }
  static BLIP_FAST_INLINE f32<16> add_row(const f32<16>& sum, const uint32_t* cells) {
    const Pair<16> v = Storage<16, BFloat16>::widen(load_vector<u32<16>>(cells));
    return sum + v.a + v.b;
  }
  static BLIP_FAST_INLINE f32<16> exp2(const f32<16>& t) {
    return FloatCells<16, BFloat16>::exp2(t);
  }
};

// A level of cells.h that holds tiles for as long as it lives. All rows go this way, however few,
// so that a row's result does not depend on how many others there are.
template <class Cells_, class Tiles>
class TileLevel {
 public:
  using Cells = Cells_;

  // p.rows are at most 16, p.a_step is 1, lanes are whole multiples of 32, the depth of 16.
  BLIP_FAST_INLINE void multiply(const Product& p) {
    if (p.rows != rows_) {
      rows_ = p.rows;
      tiles_.configure(config_of(rows_));
    }
    int64_t lane = 0;
    for (; lane + 4 * kTileWords <= p.lanes; lane += 4 * kTileWords) multiply_lanes<4>(p, lane);
    if (lane < p.lanes) multiply_lanes<2>(p, lane);
  }

 private:
  static constexpr Tile<4> kLeft{};
  static constexpr Tile<5> kRight{};

  // What tile 5 holds is always whole; sums and the left operand have a product's rows.
  static constexpr TileConfig config_of(int64_t rows) {
    TileConfig config = kWholeTiles;
    for (int i = 0; i < 5; ++i) config.rows[i] = static_cast<uint8_t>(rows);
    return config;
  }

  template <int kCount>
  BLIP_FAST_INLINE void multiply_lanes(const Product& p, int64_t lane) {
    float* const c = p.c + lane;
    unroll<kCount>([&](auto n) __attribute__((always_inline)) {
      if (p.add) {
        tiles_.load(Tile<n>{}, c + n * kTileWords, p.c_stride * 4);
      } else {
        tiles_.zero(Tile<n>{});
      }
    });
    for (int64_t k = 0; k < p.depth; k += kTileWords) {
      tiles_.load(kLeft, p.a + k, p.a_stride * 4);
      unroll<kCount>([&](auto n) __attribute__((always_inline)) {
        tiles_.load(kRight, p.b + k * p.b_stride + lane + n * kTileWords, p.b_stride * 4);
        tiles_.add_pairs(Tile<n>{}, kLeft, kRight);
      });
    }
    unroll<kCount>([&](auto n) __attribute__((always_inline)) {
      tiles_.store(Tile<n>{}, c + n * kTileWords, p.c_stride * 4);
    });
  }

  Tiles tiles_{kWholeTiles};
  int64_t rows_ = kTileRows;
};

}  // namespace blip_fast

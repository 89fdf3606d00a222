// Sums of products of bytes on tiles: up to 32 rows of x against a panel of 32 rows of a weight.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include <blip_fast/tile.h>

namespace blip_fast {

// Rows of x that share a pass over a panel, and the panel's columns: two tiles each.
inline constexpr int64_t kTiledRows = 2 * kTileRows;
inline constexpr int64_t kTiledColumns = 2 * kTileWords;

// sums[row, column] = starts[column] + x[row] . weight[column], for `rows` <= 32 rows of bytes that
// lie `stride` bytes apart, whole lines. Beyond them, up to a multiple of 16, there must be memory.
// The panel is [quads, 32, 4]; of x what stands beyond them counts for nothing.
template <class Tiles>
BLIP_FAST_INLINE void multiply_panel(Tiles& tiles, const uint8_t* x, int64_t stride, int64_t rows,
                                     const int8_t* panel, int64_t quads, const int32_t* starts,
                                     int32_t* sums) {
  constexpr Tile<0> kFirst;       // the first 16 rows, the first 16 columns
  constexpr Tile<1> kFirstRight;  // the other columns
  constexpr Tile<2> kSecond;
  constexpr Tile<3> kSecondRight;
  constexpr Tile<4> kRows;
  constexpr Tile<5> kMoreRows;
  constexpr Tile<6> kLeft;
  constexpr Tile<7> kRight;
  constexpr int64_t kLine = kTiledColumns * 4;  // bytes of a line of quads, or of sums
  const bool both = rows > kTileRows;
  const int64_t whole = quads / kTileRows, rest = quads % kTileRows;
  alignas(64) int8_t last[kTileRows * kLine];  // the quads left, and zeros
  if (rest != 0) {
    std::memcpy(last, panel + whole * kTileRows * kLine, rest * kLine);
    std::fill(last + rest * kLine, last + sizeof last, int8_t{0});
  }
  tiles.load(kFirst, starts, 0);  // the same for all rows
  tiles.load(kFirstRight, starts + kTileWords, 0);
  tiles.load(kSecond, starts, 0);
  tiles.load(kSecondRight, starts + kTileWords, 0);
  for (int64_t step = 0; step < whole + (rest != 0); ++step) {
    const int8_t* const weight = step < whole ? panel + step * kTileRows * kLine : last;
    const uint8_t* const left = x + step * kTileBytes;
    tiles.load(kRows, left, stride);
    tiles.load(kLeft, weight, kLine);
    tiles.add_quads(kFirst, kRows, kLeft);
    tiles.load(kRight, weight + kTileBytes, kLine);
    tiles.add_quads(kFirstRight, kRows, kRight);
    if (both) {
      tiles.load(kMoreRows, left + kTileRows * stride, stride);
      tiles.add_quads(kSecond, kMoreRows, kLeft);
      tiles.add_quads(kSecondRight, kMoreRows, kRight);
    }
  }
  tiles.store(kFirst, sums, kLine);
  tiles.store(kFirstRight, sums + kTileWords, kLine);
  if (both) {
    tiles.store(kSecond, sums + kTileRows * kTiledColumns, kLine);
    tiles.store(kSecondRight, sums + kTileRows * kTiledColumns + kTileWords, kLine);
  }
}

}  // namespace blip_fast

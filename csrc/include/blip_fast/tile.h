// Tiles of AMX: eight registers of up to 16 rows of 64 bytes, and what multiplies them.
//
// `AmxTiles` are the processor's, `EmulatedTiles` the same in plain C++: every path over tiles is a
// template of one or the other, so that all but the instructions themselves is tested everywhere,
// with AddressSanitizer behind every load. The real ones have not run on a processor with AMX yet.
//
// Making an object configures the tiles of the calling thread, whatever they were, with zeros in
// them; its end releases them, because a thread with live tiles costs at every switch. So make one
// in each task of a thread pool, and keep calls of other libraries out of its life. `configure`
// gives them other shapes, and zeros again.
#pragma once

#include <cstdint>

#include <blip_fast/vec.h>

namespace blip_fast {

// Names a tile at compile time, as the instructions want it.
template <int kNumber>
struct Tile {
  static_assert(kNumber >= 0 && kNumber < 8);
  constexpr operator int() const { return kNumber; }
};

// The operand of LDTILECFG.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

inline constexpr int64_t kTileRows = 16;
inline constexpr int64_t kTileBytes = 64;                // of a row
inline constexpr int64_t kTileWords = kTileBytes / 4;    // float32, int32, pairs and quads

// All eight at their full size: operands are padded with zeros instead.
inline constexpr TileConfig kWholeTiles = [] {
  TileConfig config;
  for (int i = 0; i < 8; ++i) {
    config.row_bytes[i] = kTileBytes;
    config.rows[i] = kTileRows;
  }
  return config;
}();

#if defined(__x86_64__)
// As assembly with all that an instruction reads and writes: the intrinsics of GCC 12 do not say
// that the whole configuration and a tile in memory are read, and stores to them get lost.
class AmxTiles {
 public:
  explicit BLIP_FAST_INLINE AmxTiles(const TileConfig& config) { configure(config); }
  BLIP_FAST_INLINE ~AmxTiles() { asm volatile("tilerelease" : : : "memory"); }
  AmxTiles(const AmxTiles&) = delete;
  AmxTiles& operator=(const AmxTiles&) = delete;

  BLIP_FAST_INLINE void configure(const TileConfig& config) {
    asm volatile("ldtilecfg %0" : : "m"(config) : "memory");
  }
  template <int kTo>
  BLIP_FAST_INLINE void zero(Tile<kTo>) {
    asm volatile("tilezero %%tmm%c0" : : "i"(kTo) : "memory");
  }
  // Rows lie `stride` bytes apart.
  template <int kTo>
  BLIP_FAST_INLINE void load(Tile<kTo>, const void* from, int64_t stride) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0"
                 : : "i"(kTo), "r"(from), "r"(stride) : "memory");
  }
  template <int kFrom>
  BLIP_FAST_INLINE void store(Tile<kFrom>, void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)"
                 : : "i"(kFrom), "r"(to), "r"(stride) : "memory");
  }
  // c[m, n] += the products of the pairs of bfloat16 in a[m, k] and b[k, n], over all k.
  template <int kC, int kA, int kB>
  BLIP_FAST_INLINE void add_pairs(Tile<kC>, Tile<kA>, Tile<kB>) {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0"
                 : : "i"(kC), "i"(kA), "i"(kB) : "memory");
  }
  // c[m, n] += the products of the quads of unsigned bytes in a[m, k] and signed ones in b[k, n].
  template <int kC, int kA, int kB>
  BLIP_FAST_INLINE void add_quads(Tile<kC>, Tile<kA>, Tile<kB>) {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0"
                 : : "i"(kC), "i"(kA), "i"(kB) : "memory");
  }
};
#endif

// What Intel's manual (volume 2, the pseudocode of each instruction) says, step by step; what
// would be a fault of the processor is an exception.
class EmulatedTiles {
 public:
  explicit EmulatedTiles(const TileConfig& config) { configure(config); }
  EmulatedTiles(const EmulatedTiles&) = delete;
  EmulatedTiles& operator=(const EmulatedTiles&) = delete;

  void configure(const TileConfig& config);
  void zero(int to);
  void load(int to, const void* from, int64_t stride);
  void store(int from, void* to, int64_t stride) const;
  void add_pairs(int c, int a, int b);
  void add_quads(int c, int a, int b);

  // By all threads since the start: tests see in it that a path over tiles ran.
  static int64_t products();

 private:
  void check_product(int c, int a, int b) const;

  TileConfig config_;
  // Rows and columns beyond the configured ones are zero after every operation.
  alignas(64) uint8_t data_[8][kTileRows][kTileBytes] = {};
};

}  // namespace blip_fast

// Tiles in plain C++, with the arithmetic of the processor's, and both kinds for tests to compare.

#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <blip_fast/check.h>
#include <blip_fast/isa.h>
#include <blip_fast/tile.h>

namespace blip_fast {
namespace {

std::atomic<int64_t> products_made{0};

template <class T>
T read(const uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class T>
void write(uint8_t* to, T value) {
  std::memcpy(to, &value, sizeof value);
}

constexpr float kSmallest = std::numeric_limits<float>::min();

// Numbers too small for float32's exponent are zeros of their sign.
float flushed(float v) { return std::fabs(v) < kSmallest ? std::copysign(0.0f, v) : v; }

float widened(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  return flushed(read<float>(reinterpret_cast<const uint8_t*>(&wide)));
}

// a * b + c, rounded once. What is too small before it is rounded to a float32 of less precision
// is flushed; near there product and sum are exact in float64.
float multiply_add(float a, float b, float c) {
  const float sum = std::fma(a, b, c);
  if (std::fabs(sum) > kSmallest || std::isnan(sum)) return sum;
  const double exact = static_cast<double>(a) * b + c;
  const double least = kSmallest * (1 - 0x1p-25);
  return std::fabs(exact) < least ? std::copysign(0.0f, sum) : sum;
}

}  // namespace

void EmulatedTiles::configure(const TileConfig& config) {
  STD_TORCH_CHECK(config.palette == 1 && config.start_row == 0, "tile palette ",
                  int{config.palette}, ", first row ", int{config.start_row}, "; AMX has 1 and 0");
  for (int i = 0; i < 16; ++i) {
    STD_TORCH_CHECK(config.rows[i] <= (i < 8 ? kTileRows : 0) &&
                        config.row_bytes[i] <= (i < 8 ? kTileBytes : 0),
                    "tile ", i, " has ", int{config.rows[i]}, " rows of ",
                    int{config.row_bytes[i]}, " bytes; AMX has 8 of 16 rows of 64");
  }
  config_ = config;
  std::memset(data_, 0, sizeof data_);
}

void EmulatedTiles::zero(int to) { std::memset(data_[to], 0, sizeof data_[to]); }

void EmulatedTiles::load(int to, const void* from, int64_t stride) {
  zero(to);
  for (int64_t r = 0; r < config_.rows[to]; ++r) {
    std::memcpy(data_[to][r], static_cast<const uint8_t*>(from) + r * stride,
                config_.row_bytes[to]);
  }
}

void EmulatedTiles::store(int from, void* to, int64_t stride) const {
  for (int64_t r = 0; r < config_.rows[from]; ++r) {
    std::memcpy(static_cast<uint8_t*>(to) + r * stride, data_[from][r], config_.row_bytes[from]);
  }
}

void EmulatedTiles::check_product(int c, int a, int b) const {
  STD_TORCH_CHECK(a != b && a != c && b != c, "tiles ", c, ", ", a, " and ", b,
                  " of a product must be three");
  STD_TORCH_CHECK(config_.rows[c] == config_.rows[a] &&
                      config_.row_bytes[c] == config_.row_bytes[b] &&
                      config_.row_bytes[a] == 4 * config_.rows[b] && config_.row_bytes[c] % 4 == 0,
                  "tiles ", c, ", ", a, " and ", b, " have shapes that do not multiply");
  products_made.fetch_add(1, std::memory_order_relaxed);
}

int64_t EmulatedTiles::products() { return products_made.load(std::memory_order_relaxed); }

// TDPBF16PS: the first elements of all pairs and the second ones are summed apart, each product
// and its addition rounded once, and only the two sums meet what was there before.
void EmulatedTiles::add_pairs(int c, int a, int b) {
  check_product(c, a, b);
  const int depth = config_.rows[b], columns = config_.row_bytes[c] / 4;
  for (int m = 0; m < config_.rows[c]; ++m) {
    float sums[2][kTileWords] = {};
    for (int k = 0; k < depth; ++k) {
      for (int which = 0; which < 2; ++which) {
        const float left = widened(read<uint16_t>(data_[a][m] + 4 * k + 2 * which));
        for (int n = 0; n < columns; ++n) {
          const float right = widened(read<uint16_t>(data_[b][k] + 4 * n + 2 * which));
          sums[which][n] = multiply_add(left, right, sums[which][n]);
        }
      }
    }
    for (int n = 0; n < columns; ++n) {
      uint8_t* const sum = data_[c][m] + 4 * n;
      const float added = flushed(sums[0][n] + sums[1][n]);
      write(sum, flushed(flushed(read<float>(sum)) + added));
    }
  }
}

// TDPBUSD: exact, and modulo 2^32 where that does not suffice.
void EmulatedTiles::add_quads(int c, int a, int b) {
  check_product(c, a, b);
  for (int m = 0; m < config_.rows[c]; ++m) {
    for (int k = 0; k < config_.rows[b]; ++k) {
      const uint8_t* const left = data_[a][m] + 4 * k;
      for (int n = 0; n < config_.row_bytes[c] / 4; ++n) {
        uint8_t* const at = data_[c][m] + 4 * n;
        uint32_t sum = read<uint32_t>(at);
        for (int i = 0; i < 4; ++i) {
          sum += static_cast<uint32_t>(left[i] * static_cast<int8_t>(data_[b][k][4 * n + i]));
        }
        write(at, sum);
      }
    }
  }
}

namespace {

template <class Kind>
void multiply_once(void* c, const void* a, const void* b, bool pairs) {
  Kind tiles(kWholeTiles);
  tiles.load(Tile<0>{}, c, kTileBytes);
  tiles.load(Tile<1>{}, a, kTileBytes);
  tiles.load(Tile<2>{}, b, kTileBytes);
  if (pairs) {
    tiles.add_pairs(Tile<0>{}, Tile<1>{}, Tile<2>{});
  } else {
    tiles.add_quads(Tile<0>{}, Tile<1>{}, Tile<2>{});
  }
  tiles.store(Tile<0>{}, c, kTileBytes);
}

Tensor tile_product(const Tensor& c, const Tensor& a, const Tensor& b) {
  const bool pairs = c.scalar_type() == ScalarType::Float;
  const auto check = [](const Tensor& tile, ScalarType dtype, int64_t size, const char* name) {
    check_contiguous(tile, name);
    check_dtype(tile, dtype, name);
    STD_TORCH_CHECK(tile.numel() * size == kTileRows * kTileBytes, name, " has ", tile.numel(),
                    " elements, expected ", kTileRows * kTileBytes / size);
  };
  check(c, pairs ? ScalarType::Float : ScalarType::Int, 4, "c");
  check(a, pairs ? ScalarType::BFloat16 : ScalarType::Byte, pairs ? 2 : 1, "a");
  check(b, pairs ? ScalarType::BFloat16 : ScalarType::Char, pairs ? 2 : 1, "b");
  STD_TORCH_CHECK(current_tiles() != Tiles::none, "instruction set '", current_level().name,
                  "' has no tiles; set one that has");
  Tensor sum = torch::stable::clone(c);
  auto run = &multiply_once<EmulatedTiles>;
#if defined(__x86_64__)
  if (current_tiles() == Tiles::amx) run = &multiply_once<AmxTiles>;
#endif
  run(sum.mutable_data_ptr(), a.const_data_ptr(), b.const_data_ptr(), pairs);
  return sum;
}

int64_t emulated_products() { return EmulatedTiles::products(); }

}  // namespace
}  // namespace blip_fast

STABLE_TORCH_LIBRARY_IMPL(blip_fast, CPU, m) {
  m.impl("tile_product", TORCH_BOX(&blip_fast::tile_product));
}
STABLE_TORCH_LIBRARY_IMPL(blip_fast, CompositeExplicitAutograd, m) {
  m.impl("emulated_products", TORCH_BOX(&blip_fast::emulated_products));
}

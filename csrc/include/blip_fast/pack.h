// Copies rows of a tensor into the operands of a Product, widened or paired as its level wants.
//
// A row is `width` elements; rows are `stride` elements apart. Lanes and units past the end of
// rows and of the sequence are zero, so that products need no tails. Columns of C that stand for
// the elements of a row are in the lane order of Storage<W, T>: see Pair in vec.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

#include <blip_fast/product.h>
#include <blip_fast/transpose.h>
#include <blip_fast/vec.h>

namespace blip_fast {

constexpr int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Rows that go into one block of columns: whole vectors at every level.
inline constexpr int64_t kBlock = 64;

template <class T>
struct Rows {
  const T* first;
  int64_t stride, count, width;
  const T* row(int64_t r) const { return first + r * stride; }
};

// Memory on cache lines, private to one thread, handed out piece by piece.
class Arena {
 public:
  explicit Arena(int64_t words) : data_(new (std::align_val_t{64}) float[words]) {}
  template <class Unit>
  Unit* take(int64_t units) {
    static_assert(sizeof(Unit) == sizeof(float));
    float* const piece = data_.get() + used_;
    used_ += round_up(units, 16);
    return reinterpret_cast<Unit*>(piece);
  }

 private:
  struct Free {
    void operator()(float* data) const { ::operator delete[](data, std::align_val_t{64}); }
  };
  std::unique_ptr<float[], Free> data_;
  int64_t used_ = 0;
};

// The unit of level `Level` that holds element `i` of a row (and `i + 1`, or zero past its end).
template <class Level, class T>
BLIP_FAST_INLINE typename Level::Unit unit_along(const T* row, int64_t i, int64_t width) {
  if constexpr (Level::kDepth == 1) {
    return static_cast<float>(row[i]);
  } else {
    uint32_t pair = 0;
    std::memcpy(&pair, row + i, i + 1 < width ? 4 : 2);
    return pair;
  }
}

// The unit that holds element i of two rows (of `next` nothing, if it is null).
template <class Level, class T>
BLIP_FAST_INLINE typename Level::Unit unit_across(const T* row, const T* next, int64_t i) {
  if constexpr (Level::kDepth == 1) {
    return static_cast<float>(row[i]);
  } else {
    uint16_t low, high = 0;
    std::memcpy(&low, row + i, 2);
    if (next != nullptr) std::memcpy(&high, next + i, 2);
    return low | static_cast<uint32_t>(high) << 16;
  }
}

// Whether the units of a row lie in memory as they are wanted.
template <class Level, class T>
inline constexpr bool kAsStored = sizeof(T) * Level::kDepth == sizeof(typename Level::Unit);

// A operand, summed over the width: to[r, unit].
template <class Level, class T>
BLIP_FAST_INLINE void pack_left(const Rows<T>& from, typename Level::Unit* to) {
  const int64_t units = round_up(from.width, Level::kDepth) / Level::kDepth;
  for (int64_t r = 0; r < from.count; ++r, to += units) {
    const T* const row = from.row(r);
    if constexpr (kAsStored<Level, T>) {
      to[units - 1] = 0;
      std::memcpy(to, row, from.width * sizeof(T));
      continue;
    }
    for (int64_t u = 0; u < from.width / Level::kDepth; ++u) {
      to[u] = unit_along<Level>(row, u * Level::kDepth, from.width);
    }
    if (from.width % Level::kDepth != 0) {
      to[units - 1] = unit_along<Level>(row, from.width - 1, from.width);
    }
  }
}

#if defined(__x86_64__)
// As `pack_left_across` for pairs of rows and whole vectors, turned in registers.
template <class T>
BLIP_FAST_INLINE void pack_pairs_across(const Rows<T>& from, int64_t units, uint32_t* to) {
  alignas(64) uint32_t even[16 * 16], odd[16 * 16];  // elements of pairs of rows
  for (int64_t r = 0; r < from.count; r += 32) {
    for (int64_t i = 0; i < from.width; i += 32) {
      for (int64_t pair = 0; pair < 16; ++pair) {
        const int64_t at = r + 2 * pair;
        u32<16> a{}, b{};
        if (at < from.count) a = load_vector<u32<16>>(from.row(at) + i);
        if (at + 1 < from.count) b = load_vector<u32<16>>(from.row(at + 1) + i);
        const u32<16> low = (a & 0xffffu) | (b << 16), high = (a >> 16) | (b & 0xffff0000u);
        std::memcpy(even + pair * 16, &low, sizeof low);
        std::memcpy(odd + pair * 16, &high, sizeof high);
      }
      const auto evens = [&](int p) __attribute__((always_inline)) { return even + p * 16; };
      const auto odds = [&](int p) __attribute__((always_inline)) { return odd + p * 16; };
      transpose_16x16(evens, to + i * units + r / 2, 2 * units);
      transpose_16x16(odds, to + (i + 1) * units + r / 2, 2 * units);
    }
  }
}
#endif

// A operand, summed over the rows, with a stride of `units` units: to[element, unit].
template <class Level, class T>
BLIP_FAST_INLINE void pack_left_across(const Rows<T>& from, int64_t units,
                                       typename Level::Unit* to) {
#if defined(__x86_64__)
  if constexpr (Level::W == 16 && Level::kDepth == 2) {
    if (from.width % 32 == 0 && units % 16 == 0) return pack_pairs_across(from, units, to);
  }
#endif
  std::memset(to, 0, from.width * units * sizeof *to);
  for (int64_t r = 0; r < from.count; r += Level::kDepth) {
    const T* const row = from.row(r);
    const T* const next = r + 1 < from.count ? from.row(r + 1) : nullptr;
    for (int64_t i = 0; i < from.width; ++i) {
      to[i * units + r / Level::kDepth] = unit_across<Level>(row, next, i);
    }
  }
}

// B operand, summed over the rows: to[row unit, lanes of the width].
template <class Level, class T>
BLIP_FAST_INLINE void pack_right(const Rows<T>& from, typename Level::Unit* to) {
  constexpr int W = Level::W;
  using S = Storage<W, T>;
  for (int64_t r = 0; r < from.count; r += Level::kDepth) {
    for (int64_t i = 0; i < from.width; i += 2 * W, to += 2 * W) {
      const int64_t count = std::min<int64_t>(2 * W, from.width - i);
      const auto bits = load_bits<W>(from.row(r) + i, count);
      if constexpr (Level::kDepth == 1) {
        store_pair<W>(to, S::widen(bits));
      } else {
        u32<W> next{};
        if (r + 1 < from.count) next = load_bits<W>(from.row(r + 1) + i, count);
        const u32<W> even = (bits & 0xffffu) | (next << 16);
        const u32<W> odd = (bits >> 16) | (next & 0xffff0000u);
        std::memcpy(to, &even, sizeof even);
        std::memcpy(to + W, &odd, sizeof odd);
      }
    }
  }
}

// B operand, summed over the width, in blocks of kBlock rows: to[block, unit, row of the block].
template <class Level, class T>
BLIP_FAST_INLINE void pack_right_across(const Rows<T>& from, typename Level::Unit* to) {
  const int64_t units = round_up(from.width, Level::kDepth) / Level::kDepth;
  const int64_t whole = from.width / Level::kDepth;
  for (int64_t r = 0; r < round_up(from.count, kBlock); ++r) {
#if defined(__x86_64__)
    if constexpr (Level::W == 16 && kAsStored<Level, T>) {
      if (r % 16 == 0 && r + 16 <= from.count && whole == units && units % 16 == 0) {
        auto* const block = reinterpret_cast<uint32_t*>(to) + r / kBlock * units * kBlock;
        for (int64_t u = 0; u < units; u += 16) {
          const auto row = [&](int i) __attribute__((always_inline)) {
            return from.row(r + i) + u * Level::kDepth;
          };
          transpose_16x16(row, block + u * kBlock + r % kBlock, kBlock);
        }
        r += 15;
        continue;
      }
    }
#endif
    typename Level::Unit* const lane = to + r / kBlock * units * kBlock + r % kBlock;
    if (r >= from.count) {
      for (int64_t u = 0; u < units; ++u) lane[u * kBlock] = 0;
      continue;
    }
    const T* const row = from.row(r);
    for (int64_t u = 0; u < whole; ++u) {
      lane[u * kBlock] = unit_along<Level>(row, u * Level::kDepth, from.width);
    }
    if (whole < units) lane[whole * kBlock] = unit_along<Level>(row, from.width - 1, from.width);
  }
}

}  // namespace blip_fast

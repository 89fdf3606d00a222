// What follows a linear's sums: bias, GELU, residual, and the rounding to the result's dtype.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include <blip_fast/gelu.h>
#include <blip_fast/vec.h>

namespace blip_fast {

// W stored values as float32, in the order of memory.
template <int W>
BLIP_FAST_INLINE f32<W> widen_row(const f32<W>& values) {
  return values;
}
template <int W>
BLIP_FAST_INLINE f32<W> widen_row(const u16<W>& bits) {
  u32<W> wide;
#if defined(__x86_64__)
  if constexpr (W >= 8) {  // the compiler would widen halves and join them
    asm("vpmovzxwd %1, %0" : "=v"(wide) : "v"(bits));
    return (f32<W>)(wide << 16);
  }
#endif
  wide = __builtin_convertvector(bits, u32<W>);
  return (f32<W>)(wide << 16);
}

// W values in the order of memory, of which `count` are there.
template <int W, class T>
BLIP_FAST_INLINE f32<W> load_row(const T* from, int64_t count) {
  using Stored = std::conditional_t<std::is_same_v<T, float>, f32<W>, u16<W>>;
  if (count == W) return widen_row<W>(load_vector<Stored>(from));
  Stored piece{};
  std::memcpy(&piece, from, count * sizeof(T));
  return widen_row<W>(piece);
}

template <class Vector, class T>
BLIP_FAST_INLINE void store_some(T* to, const Vector& v, int64_t count) {
  if (count == static_cast<int64_t>(sizeof v / sizeof(T))) {
    std::memcpy(to, &v, sizeof v);
  } else {
    std::memcpy(to, &v, count * sizeof(T));
  }
}

template <int W, class T>
BLIP_FAST_INLINE void store_row(T* to, const f32<W>& v, int64_t count) {
  if constexpr (std::is_same_v<T, float>) {
    store_some(to, v, count);
  } else {
    const u32<W> bits = (u32<W>)v;
    const u32<W> rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    store_some(to, __builtin_convertvector(rounded, u16<W>), count);
  }
}

template <class T>
struct Epilogue {
  const T* bias;      // [n] or null
  const T* residual;  // [rows, n] or null
  T* out;             // [rows, n]
  int64_t n;
  bool gelu;

  // out = activation(v + bias) + residual for `count` <= W results of one row.
  template <int W>
  BLIP_FAST_INLINE void finish(f32<W> v, int64_t row, int64_t column, int64_t count) const {
    const int64_t at = row * n + column;
    if (bias != nullptr) v += load_row<W>(bias + column, count);
    if (gelu) v = blip_fast::gelu<W>(v);
    if (residual != nullptr) v += load_row<W>(residual + at, count);
    store_row<W>(out + at, v, count);
  }
};

}  // namespace blip_fast

// Sums of four products of unsigned and signed bytes, exact in 32 bits, at every instruction set.
//
// A lane of a `u32<W>` holds a quad: four neighbours along the summed dimension. All policies give
// the same integers, so results do not depend on the processor but for the last rounding.
#pragma once

#include <cstdint>
#include <cstring>

#include <blip_fast/vec.h>

namespace blip_fast {

// *from in every lane; see `broadcast` in product.h for why it is assembly.
template <int W>
BLIP_FAST_INLINE u32<W> broadcast_quad(const uint8_t* from) {
#if defined(__x86_64__)
  if constexpr (W >= 8) {
    u32<W> v;
    asm("vpbroadcastd %1, %0" : "=v"(v) : "m"(*reinterpret_cast<const uint8_t(*)[4]>(from)));
    return v;
  }
#endif
  uint32_t quad;
  std::memcpy(&quad, from, sizeof quad);
  return quad + u32<W>{};
}

// Byte by byte, in 32-bit lanes: everywhere.
struct PlainQuads {
  static constexpr int W = 4;
  static constexpr int kRows = 2, kVectors = 2;  // the tile that the registers hold
  using Left = u32<4>;
  using Right = u32<4>;
  static BLIP_FAST_INLINE Left left(const uint8_t* from) { return broadcast_quad<4>(from); }
  static BLIP_FAST_INLINE Right right(const int8_t* from) { return load_vector<Right>(from); }
  static BLIP_FAST_INLINE void add(i32<4>& sum, const Left& a, const Right& b) {
    sum += (i32<4>)(a & 0xffu) * ((i32<4>)(b << 24) >> 24);
    sum += (i32<4>)(a >> 8 & 0xffu) * ((i32<4>)(b << 16) >> 24);
    sum += (i32<4>)(a >> 16 & 0xffu) * ((i32<4>)(b << 8) >> 24);
    sum += (i32<4>)(a >> 24) * ((i32<4>)b >> 24);
  }
};

#if defined(__x86_64__)
// Two sums of two 16-bit products. The instruction for bytes, VPMADDUBSW, saturates: it would give
// other numbers.
template <int W_>
struct PairedQuads {
  static constexpr int W = W_;
  static constexpr int kRows = W == 16 ? 6 : 3, kVectors = 2;
  struct Halves {
    u32<W> even, odd;
  };
  using Left = Halves;
  using Right = Halves;
  static BLIP_FAST_INLINE Left left(const uint8_t* from) {
    const u32<W> quad = broadcast_quad<W>(from);
    return {quad & 0x00ff00ffu, quad >> 8 & 0x00ff00ffu};
  }
  static BLIP_FAST_INLINE Right right(const int8_t* from) {
    const u32<W> quad = load_vector<u32<W>>(from);
    return {signed_bytes(quad, true), signed_bytes(quad, false)};
  }
  static BLIP_FAST_INLINE void add(i32<W>& sum, const Left& a, const Right& b) {
    sum += products(a.even, b.even) + products(a.odd, b.odd);
  }

 private:
  // The even or the odd bytes, widened to 16 bits with their sign.
  static BLIP_FAST_INLINE u32<W> signed_bytes(u32<W> quad, bool even) {
    if (even) asm("vpsllw $8, %0, %0" : "+v"(quad));
    asm("vpsraw $8, %0, %0" : "+v"(quad));
    return quad;
  }
  static BLIP_FAST_INLINE i32<W> products(const u32<W>& a, const u32<W>& b) {
    i32<W> sums;
    asm("vpmaddwd %2, %1, %0" : "=v"(sums) : "v"(a), "v"(b));
    return sums;
  }
};

// One instruction: VPDPBUSD. Every processor with AVX512-BF16 has it.
struct VnniQuads {
  static constexpr int W = 16;
  static constexpr int kRows = 12, kVectors = 2;
  using Left = u32<16>;
  using Right = u32<16>;
  static BLIP_FAST_INLINE Left left(const uint8_t* from) { return broadcast_quad<16>(from); }
  static BLIP_FAST_INLINE Right right(const int8_t* from) { return load_vector<Right>(from); }
  static BLIP_FAST_INLINE void add(i32<16>& sum, const Left& a, const Right& b) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  }
};
#endif

// The nearest integers, ties to even. Never joined to the product before it: a fused product would
// round once where the reference rounds twice.
template <int W>
BLIP_FAST_INLINE i32<W> nearest(const f32<W>& v) {
  i32<W> integers{};
#if defined(__x86_64__)
  if constexpr (W >= 8) {
    asm("vcvtps2dq %1, %0" : "=v"(integers) : "v"(v));
  } else {
    asm("cvtps2dq %1, %0" : "=x"(integers) : "x"(v));
  }
#else
  for (int i = 0; i < W; ++i) integers[i] = static_cast<int32_t>(__builtin_nearbyintf(v[i]));
#endif
  return integers;
}

// The low byte of every lane.
template <int W>
BLIP_FAST_INLINE void store_bytes(uint8_t* to, const i32<W>& v) {
#if defined(__x86_64__)
  if constexpr (W == 16) {
    u32<4> bytes;
    asm("vpmovdb %1, %0" : "=v"(bytes) : "v"(v));
    std::memcpy(to, &bytes, sizeof bytes);
    return;
  }
#endif
  for (int i = 0; i < W; ++i) to[i] = static_cast<uint8_t>(v[i]);
}

// The largest magnitude of a row, as bits, which compare as the magnitudes do; an infinity is
// larger than any number and a NaN larger still. `load(i)` gives lanes i to i + W.
template <int W, class Load>
BLIP_FAST_INLINE int32_t largest_magnitude(int64_t length, const Load& load) {
  i32<W> most{};
  for (int64_t i = 0; i < length; i += W) {
    const i32<W> bits = (i32<W>)load(i) & 0x7fffffff;
    most = bits > most ? bits : most;
  }
  int32_t lanes[W], all = 0;
  std::memcpy(lanes, &most, sizeof most);
  for (const int32_t lane : lanes) all = lane > all ? lane : all;
  return all;
}

}  // namespace blip_fast

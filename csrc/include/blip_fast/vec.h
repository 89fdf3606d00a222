// Vectors of W float32 lanes, read from and rounded to float32, bfloat16 and float16 in memory.
//
// They are compiler vectors, not intrinsics: one always-inlined body serves W = 4 (everywhere), 8
// (AVX2) and 16 (AVX-512), and takes the instruction set of the function it is inlined into.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#define BLIP_FAST_INLINE inline __attribute__((always_inline))

// Vectors never cross a real call (all is inlined), so their calling convention does not matter.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace blip_fast {

using BFloat16 = torch::headeronly::BFloat16;
using Half = torch::headeronly::Half;

template <int W>
struct Lanes {
  typedef float f32 __attribute__((vector_size(W * 4)));
  typedef int32_t i32 __attribute__((vector_size(W * 4)));
  typedef uint32_t u32 __attribute__((vector_size(W * 4)));
  typedef uint16_t u16 __attribute__((vector_size(W * 2)));
};
template <int W>
using f32 = typename Lanes<W>::f32;
template <int W>
using i32 = typename Lanes<W>::i32;
template <int W>
using u32 = typename Lanes<W>::u32;
template <int W>
using u16 = typename Lanes<W>::u16;

// 2W elements of a row, in the lane order of their storage type. For bfloat16 `a` holds the even
// elements and `b` the odd ones: that costs a shift and a mask, where the order of memory would
// cost shuffles across the vector (add_layernorm of [4616, 768], one Zen 4 core: 1.7 ms, not 1.1).
template <int W>
struct Pair {
  f32<W> a, b;
};

template <class Vector>
BLIP_FAST_INLINE Vector load_vector(const void* from) {
  Vector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

// How T is stored. `widen`: 2W stored elements to float32 lanes, exact. `narrow`: back, to nearest
// with ties to even. `element(lane)`: which of the 2W elements sits in a lane of (a, b).
//
// NaN stays NaN if its payload is in its upper half, as it is for every NaN that arithmetic makes
// or that comes from a 16-bit type; float32 inputs pass through `quiet`.
template <int W, class T>
struct Storage;

template <int W>
struct Storage<W, float> {
  using Bits = Pair<W>;
  static constexpr int element(int lane) { return lane; }
  static BLIP_FAST_INLINE Bits load(const float* from) {
    return {load_vector<f32<W>>(from), load_vector<f32<W>>(from + W)};
  }
  static BLIP_FAST_INLINE void store(float* to, const Bits& bits) {
    std::memcpy(to, &bits.a, sizeof bits.a);
    std::memcpy(to + W, &bits.b, sizeof bits.b);
  }
  static BLIP_FAST_INLINE Pair<W> widen(const Bits& bits) { return bits; }
  static BLIP_FAST_INLINE Bits narrow(const Pair<W>& v) { return v; }
};

// Two 16-bit elements to each lane of 32 bits.
template <int W, class T>
struct Interleaved {
  using Bits = u32<W>;
  static constexpr int element(int lane) { return lane < W ? 2 * lane : 2 * (lane - W) + 1; }
  static BLIP_FAST_INLINE Bits load(const T* from) { return load_vector<Bits>(from); }
  static BLIP_FAST_INLINE void store(T* to, const Bits& bits) {
    std::memcpy(to, &bits, sizeof bits);
  }
};

template <int W>
struct Storage<W, BFloat16> : Interleaved<W, BFloat16> {
  static BLIP_FAST_INLINE Pair<W> widen(const u32<W>& bits) {
    return {(f32<W>)(bits << 16), (f32<W>)(bits & 0xffff0000u)};
  }
  static BLIP_FAST_INLINE u32<W> narrow(const Pair<W>& v) {
    return (round_high(v.a) >> 16) | (round_high(v.b) & 0xffff0000u);
  }

 private:
  // Rounds to the upper 16 bits; the lower ones are left over. A NaN whose lower bits are all set
  // would be carried over into zero: see `quiet`.
  static BLIP_FAST_INLINE u32<W> round_high(const f32<W>& v) {
    const u32<W> bits = (u32<W>)v;
    return bits + 0x7fffu + ((bits >> 16) & 1u);
  }
};

// Float16 by integer arithmetic, for processors without an instruction for it.
template <int W>
struct PortableHalf : Interleaved<W, Half> {
  static BLIP_FAST_INLINE Pair<W> widen(const u32<W>& bits) {
    return {widen_low(bits & 0xffffu), widen_low(bits >> 16)};
  }
  static BLIP_FAST_INLINE u32<W> narrow(const Pair<W>& v) {
    return narrow_low(v.a) | (narrow_low(v.b) << 16);
  }

 private:
  static BLIP_FAST_INLINE f32<W> widen_low(const u32<W>& bits) {
    const u32<W> magnitude = bits & 0x7fffu;
    // 2^112 is the difference of the exponent biases; subnormals are normalised by the product.
    const u32<W> finite = (u32<W>)((f32<W>)(magnitude << 13) * 0x1p112f);
    const u32<W> special = (i32<W>)magnitude >= 0x7c00 ? finite | 0x7f800000u : finite;
    return (f32<W>)(special | ((bits & 0x8000u) << 16));
  }
  static BLIP_FAST_INLINE u32<W> narrow_low(const f32<W>& v) {
    const u32<W> sign = (u32<W>)v & 0x80000000u;
    const u32<W> bits = (u32<W>)v ^ sign;
    const i32<W> order = (i32<W>)bits;  // magnitudes compare as integers
    const u32<W> normal = (bits + 0xc8000fffu + ((bits >> 13) & 1u)) >> 13;
    // The last bit of a float near 0.5 is worth 2^-24, the step of subnormal halves.
    const u32<W> subnormal = (u32<W>)((f32<W>)bits + 0.5f) - 0x3f000000u;
    const u32<W> infinite = order > 0x7f800000 ? u32<W>{} + 0x7e00u : u32<W>{} + 0x7c00u;
    const u32<W> finite = order < 0x38800000 ? subnormal : normal;
    return (order < 0x47800000 ? finite : infinite) | (sign >> 16);
  }
};

#if defined(__x86_64__)
// Float16 by the instructions of F16C, which every level above `portable` has. As assembly, because
// an intrinsic may not stand in a function that leaves its instruction set to its caller.
template <int W>
struct F16cHalf {
  struct Bits {
    u16<W> a, b;
  };
  static constexpr int element(int lane) { return lane; }
  static BLIP_FAST_INLINE Bits load(const Half* from) {
    return {load_vector<u16<W>>(from), load_vector<u16<W>>(from + W)};
  }
  static BLIP_FAST_INLINE void store(Half* to, const Bits& bits) {
    std::memcpy(to, &bits.a, sizeof bits.a);
    std::memcpy(to + W, &bits.b, sizeof bits.b);
  }
  static BLIP_FAST_INLINE Pair<W> widen(const Bits& bits) {
    return {widen_vector(bits.a), widen_vector(bits.b)};
  }
  static BLIP_FAST_INLINE Bits narrow(const Pair<W>& v) {
    return {narrow_vector(v.a), narrow_vector(v.b)};
  }

 private:
  static BLIP_FAST_INLINE f32<W> widen_vector(const u16<W>& bits) {
    f32<W> v;
    asm("vcvtph2ps %1, %0" : "=v"(v) : "v"(bits));
    return v;
  }
  static BLIP_FAST_INLINE u16<W> narrow_vector(const f32<W>& v) {
    u16<W> bits;
    asm("vcvtps2ph $0, %1, %0" : "=v"(bits) : "v"(v));  // 0: to nearest, ties to even
    return bits;
  }
};

template <int W>
struct Storage<W, Half> : std::conditional_t<(W >= 8), F16cHalf<W>, PortableHalf<W>> {};
#else
template <int W>
struct Storage<W, Half> : PortableHalf<W> {};
#endif

// Reads the first `count` <= 2W elements; the lanes of the others are zero.
template <int W, class T>
BLIP_FAST_INLINE typename Storage<W, T>::Bits load_bits(const T* from, int64_t count) {
  if (count == 2 * W) return Storage<W, T>::load(from);
  T piece[2 * W]{};
  std::memcpy(piece, from, count * sizeof(T));
  return Storage<W, T>::load(piece);
}

// Writes the first `count` <= 2W elements.
template <int W, class T>
BLIP_FAST_INLINE void store_bits(T* to, const typename Storage<W, T>::Bits& bits, int64_t count) {
  if (count == 2 * W) return Storage<W, T>::store(to, bits);
  T piece[2 * W];
  Storage<W, T>::store(piece, bits);
  std::memcpy(to, piece, count * sizeof(T));
}

template <int W>
BLIP_FAST_INLINE Pair<W> load_pair(const float* from) {
  return Storage<W, float>::load(from);
}

template <int W>
BLIP_FAST_INLINE void store_pair(float* to, const Pair<W>& v) {
  Storage<W, float>::store(to, v);
}

// A NaN from outside, freed of its payload; other values unchanged.
inline float quiet(float v) { return v == v ? v : __builtin_nanf(""); }

// The sum of all lanes, by halves.
template <int W>
BLIP_FAST_INLINE float reduce_add(const f32<W>& v) {
  if constexpr (W == 2) {
    return v[0] + v[1];
  } else {
    f32<W / 2> low, high;
    std::memcpy(&low, &v, sizeof low);
    std::memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof low, sizeof high);
    return reduce_add<W / 2>(low + high);
  }
}

// The larger in each lane; a NaN in `v` loses.
template <int W>
BLIP_FAST_INLINE f32<W> larger(const f32<W>& v, const f32<W>& than) {
  return v > than ? v : than;
}

// The largest lane, by halves; if one is NaN, any.
template <int W>
BLIP_FAST_INLINE float reduce_max(const f32<W>& v) {
  if constexpr (W == 2) {
    return v[0] > v[1] ? v[0] : v[1];
  } else {
    f32<W / 2> low, high;
    std::memcpy(&low, &v, sizeof low);
    std::memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof low, sizeof high);
    return reduce_max<W / 2>(larger<W / 2>(low, high));
  }
}

}  // namespace blip_fast

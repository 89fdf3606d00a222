// Small matrix products C (+)= A B with float32 accumulators, for tiles that live in the caches.
//
// A is read a scalar at a time and broadcast, B in vectors of W lanes, C is float32. What a scalar
// and a lane hold is the `Unit` of a level: one float32, or two bfloat16 that lie next to each
// other along the summed dimension, which one instruction multiplies and adds. The caller packs B
// so that its lanes are the columns of C; see pack.h.
#pragma once

#include <algorithm>
#include <cstdint>

#include <blip_fast/isa.h>
#include <blip_fast/vec.h>

namespace blip_fast {

template <class Unit>
struct Product {
  const Unit* a;    // [rows, depth]
  int64_t a_stride;
  const Unit* b;    // [depth, vectors * W]
  int64_t b_stride;
  float* c;         // [rows, vectors * W]
  int64_t c_stride;
  int64_t rows, vectors, depth;
};

// *from in every lane. As assembly, because the compiler splits a vector made of one scalar before
// it knows the instruction set of the caller, and then fills lane after lane.
template <int W>
BLIP_FAST_INLINE f32<W> broadcast(const float* from) {
#if defined(__x86_64__)
  if constexpr (W >= 8) {
    f32<W> v;
    asm("vbroadcastss %1, %0" : "=v"(v) : "m"(*from));
    return v;
  }
#endif
  return *from - f32<W>{};
}

// Float32 units; 16-bit inputs are widened when they are packed.
template <int W_>
struct FloatUnits {
  static constexpr int W = W_;
  static constexpr int kDepth = 1;                    // elements in a unit
  static constexpr int kVectors = W == 16 ? 4 : 2;    // 6 x kVectors accumulators fit the registers
  using Unit = float;
  using Vector = f32<W>;
  static BLIP_FAST_INLINE Vector spread(const Unit* a) { return broadcast<W>(a); }
  static BLIP_FAST_INLINE void add(f32<W>& c, const Vector& a, const Vector& b) { c += a * b; }
};

// Pairs of bfloat16, everywhere: the layout that tiles multiply, for a processor without them.
struct PlainPairUnits {
  static constexpr int W = 4;
  static constexpr int kDepth = 2;
  static constexpr int kVectors = 2;
  using Unit = uint32_t;
  using Vector = u32<4>;
  static BLIP_FAST_INLINE Vector spread(const Unit* a) { return *a + Vector{}; }
  static BLIP_FAST_INLINE void add(f32<4>& c, const Vector& a, const Vector& b) {
    c += (f32<4>)(a << 16) * (f32<4>)(b << 16);
    c += (f32<4>)(a & 0xffff0000u) * (f32<4>)(b & 0xffff0000u);
  }
  // Eight bfloat16 in the order of memory: those of `a`, then those of `b`.
  static BLIP_FAST_INLINE Vector narrow_in_order(const f32<4>& a, const f32<4>& b) {
    return Storage<4, BFloat16>::narrow({__builtin_shufflevector(a, b, 0, 2, 4, 6),
                                         __builtin_shufflevector(a, b, 1, 3, 5, 7)});
  }
};

#if defined(__x86_64__)
// Pairs of bfloat16, AVX512_BF16. As assembly, because an intrinsic may not stand in a function
// that leaves its instruction set to its caller.
struct PairUnits {
  static constexpr int W = 16;
  static constexpr int kDepth = 2;
  static constexpr int kVectors = 4;
  using Unit = uint32_t;
  using Vector = u32<16>;
  static BLIP_FAST_INLINE Vector spread(const Unit* a) {
    Vector v;
    asm("vpbroadcastd %1, %0" : "=v"(v) : "m"(*a));
    return v;
  }
  static BLIP_FAST_INLINE void add(f32<16>& c, const Vector& a, const Vector& b) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
  }
  // 32 bfloat16 in the order of memory: those of `a`, then those of `b`.
  static BLIP_FAST_INLINE Vector narrow_in_order(const f32<16>& a, const f32<16>& b) {
    Vector bits;
    asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(bits) : "v"(a), "v"(b));
    return bits;
  }
  // Each lane of `a` beside that of `b`, as a unit.
  static BLIP_FAST_INLINE Vector narrow_across(const f32<16>& a, const f32<16>& b) {
    constexpr u16<32> order = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                               8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    Vector bits = narrow_in_order(a, b);
    asm("vpermw %0, %1, %0" : "+v"(bits) : "v"(order));
    return bits;
  }
};
#endif

// A tile of C of M rows and N vectors. The loops over M and N unroll into registers.
template <class Level, bool kAdd, int M, int N>
BLIP_FAST_INLINE void multiply_tile(const Product<typename Level::Unit>& p, int64_t row,
                                    int64_t vector) {
  constexpr int W = Level::W;
  using Vector = typename Level::Vector;
  const typename Level::Unit* const a = p.a + row * p.a_stride;
  const typename Level::Unit* b = p.b + vector * W;
  float* const c = p.c + row * p.c_stride + vector * W;
  f32<W> sums[M][N];
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      sums[m][n] = kAdd ? load_vector<f32<W>>(c + m * p.c_stride + n * W) : f32<W>{};
    }
  }
  for (int64_t k = 0; k < p.depth; ++k, b += p.b_stride) {
    Vector columns[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) columns[n] = load_vector<Vector>(b + n * W);
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) {
      const Vector left = Level::spread(a + m * p.a_stride + k);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) Level::add(sums[m][n], left, columns[n]);
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      std::memcpy(c + m * p.c_stride + n * W, &sums[m][n], sizeof sums[m][n]);
    }
  }
}

template <class Level, bool kAdd, int N>
BLIP_FAST_INLINE void multiply_columns(const Product<typename Level::Unit>& p, int64_t vector) {
  int64_t row = 0;
  for (; row + 6 <= p.rows; row += 6) multiply_tile<Level, kAdd, 6, N>(p, row, vector);
  switch (p.rows - row) {
    case 5: return multiply_tile<Level, kAdd, 5, N>(p, row, vector);
    case 4: return multiply_tile<Level, kAdd, 4, N>(p, row, vector);
    case 3: return multiply_tile<Level, kAdd, 3, N>(p, row, vector);
    case 2: return multiply_tile<Level, kAdd, 2, N>(p, row, vector);
    case 1: return multiply_tile<Level, kAdd, 1, N>(p, row, vector);
    default: return;
  }
}

// The number of vectors must be even.
template <class Level, bool kAdd>
BLIP_FAST_INLINE void multiply_all(const Product<typename Level::Unit>& p) {
  constexpr int kVectors = Level::kVectors;
  int64_t v = 0;
  for (; v + kVectors <= p.vectors; v += kVectors) multiply_columns<Level, kAdd, kVectors>(p, v);
  if constexpr (kVectors > 2) {
    if (v < p.vectors) multiply_columns<Level, kAdd, 2>(p, v);
  }
}

// The levels: how units multiply, and a copy of the product for each instruction set. A function
// that is called from many places is compiled once, so it is not inlined.
#define BLIP_FAST_LEVEL(Name, Units, Target)                           \
  struct Name : Units {                                                \
    template <bool kAdd>                                               \
    Target __attribute__((noinline)) static void multiply(            \
        const Product<Unit>& p) {                                     \
      multiply_all<Units, kAdd>(p);                                    \
    }                                                                  \
  };

BLIP_FAST_LEVEL(PortableLevel, FloatUnits<4>, )
BLIP_FAST_LEVEL(PortablePairLevel, PlainPairUnits, )
#if defined(__x86_64__)
BLIP_FAST_LEVEL(Avx2Level, FloatUnits<8>, BLIP_FAST_TARGET_AVX2)
BLIP_FAST_LEVEL(Avx512Level, FloatUnits<16>, BLIP_FAST_TARGET_AVX512)
BLIP_FAST_LEVEL(Avx512Bf16Level, PairUnits, BLIP_FAST_TARGET_AVX512BF16)
#endif
#undef BLIP_FAST_LEVEL

}  // namespace blip_fast

// Many dot products at once: a tile of rows of x against rows of a weight, both contiguous over K.
//
// A policy D says how K is walked: `kStep` elements at a time, `Weight` in registers, x prepared as
// `Prepared`. Sums are float32 lanes, added up once at the end of K.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include <blip_fast/vec.h>

namespace blip_fast {

// Weight rows of a tile, and thus neighbouring results.
constexpr int kTileColumns = 4;

// Everything as float32 products. x is prepared as float32 in the lane order of T.
template <int W_, class T>
struct WidenedDot {
  static constexpr int W = W_;
  static constexpr int kStep = 2 * W;
  static constexpr int kRows = W == 16 ? 4 : 2;  // of x in a tile: what the registers hold
  using Stored = T;
  using Prepared = float;
  using Piece = Pair<W>;
  static BLIP_FAST_INLINE Piece weight(const T* from, int64_t count) {
    return Storage<W, T>::widen(load_bits<W>(from, count));
  }
  static BLIP_FAST_INLINE Piece x(const float* from) { return load_pair<W>(from); }
  static BLIP_FAST_INLINE void add(f32<W>& sum, const Piece& x, const Piece& w) {
    sum += x.a * w.a;
    sum += x.b * w.b;
  }
  static BLIP_FAST_INLINE void prepare(const T* from, int64_t count, float* to) {
    store_pair<W>(to, weight(from, count));
  }
};

#if defined(__x86_64__)
// Products of bfloat16 pairs by VDPBF16PS, which reads x as it is. As assembly, because an
// intrinsic may not stand in a function that leaves its instruction set to its caller.
struct Bf16Dot {
  static constexpr int W = 16;
  static constexpr int kStep = 32;
  static constexpr int kRows = 6;
  using Stored = BFloat16;
  using Prepared = BFloat16;
  using Piece = u32<16>;
  static BLIP_FAST_INLINE Piece weight(const BFloat16* from, int64_t count) {
    return load_bits<16>(from, count);
  }
  static BLIP_FAST_INLINE Piece x(const BFloat16* from) { return load_vector<Piece>(from); }
  static BLIP_FAST_INLINE void add(f32<16>& sum, const Piece& x, const Piece& w) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
  }
  static BLIP_FAST_INLINE void prepare(const BFloat16* from, int64_t count, BFloat16* to) {
    const Piece piece = weight(from, count);
    std::memcpy(to, &piece, sizeof piece);
  }
};
#endif

// The two halves of a vector, added, until four lanes are left. By value and without memcpy: what
// has its address taken does not stay in a register.
template <int W, int... I>
BLIP_FAST_INLINE f32<W / 2> add_halves(f32<W> v, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(v, v, I...) + __builtin_shufflevector(v, v, (W / 2 + I)...);
}
template <int W>
BLIP_FAST_INLINE f32<4> fold(f32<W> v) {
  if constexpr (W == 4) {
    return v;
  } else {
    return fold<W / 2>(add_halves<W>(v, std::make_integer_sequence<int, W / 2>{}));
  }
}

// The sums of four vectors, one a lane.
template <int W>
BLIP_FAST_INLINE f32<4> reduce_four(f32<W> v0, f32<W> v1, f32<W> v2, f32<W> v3) {
  const f32<4> a = fold<W>(v0), b = fold<W>(v1), c = fold<W>(v2), d = fold<W>(v3);
  const f32<4> ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) +
                    __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const f32<4> cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) +
                    __builtin_shufflevector(c, d, 2, 6, 3, 7);
  return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
}

// Calls body(index) for 0..N-1, each index a constant: an array that only constants reach can live
// in registers, where one that a loop indexes stays on the stack.
template <class Body, int... I>
BLIP_FAST_INLINE void unroll(std::integer_sequence<int, I...>, Body body) {
  (body(std::integral_constant<int, I>{}), ...);
}
template <int N, class Body>
BLIP_FAST_INLINE void unroll(Body body) {
  unroll(std::make_integer_sequence<int, N>{}, body);
}

// Memory that a tile asks for while it computes, so that it is in the cache when its turn comes:
// `bytes` at each step along K, in order. It need not exist: a prefetch cannot fault.
struct Ahead {
  const char* from;
  int64_t bytes;
};

// One step along K: the pieces of `count` elements at `i`.
template <class D, int M>
BLIP_FAST_INLINE void dot_step(f32<D::W> (&sums)[M][kTileColumns],
                               const typename D::Prepared* x, int64_t x_stride,
                               const typename D::Stored* const (&rows)[kTileColumns], int64_t i,
                               int64_t count) {
  typename D::Piece w[kTileColumns];
  unroll<kTileColumns>([&](auto j) __attribute__((always_inline)) {
    w[j] = D::weight(rows[j] + i, count);
  });
  unroll<M>([&](auto m) __attribute__((always_inline)) {
    const typename D::Piece v = D::x(x + m * x_stride + i);
    unroll<kTileColumns>([&](auto j) __attribute__((always_inline)) {
      D::add(sums[m][j], v, w[j]);
    });
  });
}

// to[m][j] = x[m] . weight[j] for M rows of x (prepared, `x_stride` apart, zero beyond k) and the
// first `columns` <= 4 rows of the weight; the other results repeat the last.
template <class D, int M>
BLIP_FAST_INLINE void dot_tile(const typename D::Prepared* x, int64_t x_stride,
                               const typename D::Stored* weight, int64_t k, int64_t columns,
                               Ahead ahead, float* to, int64_t to_stride) {
  const typename D::Stored* rows[kTileColumns];
  f32<D::W> sums[M][kTileColumns];
  unroll<kTileColumns>([&](auto j) __attribute__((always_inline)) {
    rows[j] = weight + std::min<int64_t>(j, columns - 1) * k;
    unroll<M>([&](auto m) __attribute__((always_inline)) { sums[m][j] = f32<D::W>{}; });
  });
  // As many lines as the tile reads in a step; some are asked for twice where `bytes` are fewer.
  constexpr int64_t kLines = kTileColumns * D::kStep * sizeof(typename D::Stored) / 64;
  // A few rows of x wait for the weight, so it goes to the L1 cache; more keep the L1 cache busy
  // themselves (8 rows of 768 -> 3072: 400 us with the weight sent to L1, 210 to L2).
  constexpr int kLevel = M <= 3 ? 3 : 2;
  int64_t i = 0;
  for (; i + D::kStep <= k; i += D::kStep) {
    for (int64_t line = 0; line < kLines; ++line) {
      __builtin_prefetch(ahead.from + line * ahead.bytes / kLines, 0, kLevel);
    }
    ahead.from += ahead.bytes;
    dot_step<D, M>(sums, x, x_stride, rows, i, D::kStep);
  }
  if (i < k) dot_step<D, M>(sums, x, x_stride, rows, i, k - i);
  unroll<M>([&](auto m) __attribute__((always_inline)) {
    const f32<4> row = reduce_four<D::W>(sums[m][0], sums[m][1], sums[m][2], sums[m][3]);
    std::memcpy(to + m * to_stride, &row, sizeof row);
  });
}

// As `dot_tile` for any number of rows `m` <= M.
template <class D, int M>
BLIP_FAST_INLINE void dot_tile_of(int64_t m, const typename D::Prepared* x, int64_t x_stride,
                                  const typename D::Stored* weight, int64_t k, int64_t columns,
                                  Ahead ahead, float* to, int64_t to_stride) {
  if (m == M) {
    dot_tile<D, M>(x, x_stride, weight, k, columns, ahead, to, to_stride);
  } else if constexpr (M > 1) {
    dot_tile_of<D, M - 1>(m, x, x_stride, weight, k, columns, ahead, to, to_stride);
  }
}

}  // namespace blip_fast

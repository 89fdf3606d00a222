// Small matrix products over cells of 32 bits, the common ground of the attention to memory.
//
// A cell is one float32, or two bfloat16 that vdpbf16ps multiplies and adds at once. In a product
// C[rows][lanes] += A[rows][depth] * B[depth][lanes] a cell of A is broadcast and a row of B is a
// row of vectors, so that one body serves every instruction set and both kinds of cell.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include <blip_fast/isa.h>
#include <blip_fast/vec.h>

namespace blip_fast {

inline constexpr float kLog2E = 1.44269504f;
inline constexpr float kLn2 = 0.693147181f;

template <int W, int kStage, bool kHigh>
constexpr int transposed_lane(int lane) {
  const bool second = (lane & kStage) != 0;
  if (kHigh) return second ? W + lane : lane + kStage;
  return second ? W + lane - kStage : lane;
}

template <int W, int kStage, bool kHigh, int... kLane>
BLIP_FAST_INLINE u32<W> exchange(const u32<W>& a, const u32<W>& b,
                                 std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(a, b, transposed_lane<W, kStage, kHigh>(kLane)...);
}

// Transposes W vectors of W cells in log2(W) stages, each of which swaps blocks off the diagonal.
template <int W, int kStage = 1>
BLIP_FAST_INLINE void transpose(u32<W> (&v)[W]) {
  if constexpr (kStage < W) {
    using Every = std::make_integer_sequence<int, W>;
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) {
      if ((i & kStage) != 0) continue;
      const u32<W> a = v[i], b = v[i + kStage];
      v[i] = exchange<W, kStage, false>(a, b, Every{});
      v[i + kStage] = exchange<W, kStage, true>(a, b, Every{});
    }
    transpose<W, 2 * kStage>(v);
  }
}

// One float32 to a cell; 16-bit elements are widened, in the lane order of `Storage`.
template <int W, class T>
struct FloatCells {
  using Element = T;
  static constexpr int kWidth = W;
  static constexpr int kDepth = 1;   // elements of depth in a cell
  static constexpr int kPieces = 2;  // vectors of cells that hold 2W elements of a row
  // Products that are summed before the sum joins the others: a chain of 64 would err twice as
  // much as the library's.
  static constexpr int64_t kChain = 16;

  static BLIP_FAST_INLINE f32<W> madd(const f32<W>& sum, const u32<W>& a, const u32<W>& b) {
    return sum + (f32<W>)a * (f32<W>)b;
  }
  // The first `count` <= 2W elements of a row as cells along the depth; zero beyond.
  static BLIP_FAST_INLINE void load(const T* from, int64_t count, u32<W> (&cells)[2]) {
    const Pair<W> v = Storage<W, T>::widen(load_bits<W>(from, count));
    cells[0] = (u32<W>)v.a;
    cells[1] = (u32<W>)v.b;
  }
  // 2W values of one row, W each, as cells along the depth.
  static BLIP_FAST_INLINE void store_row(uint32_t* cells, const f32<W>& a, const f32<W>& b) {
    std::memcpy(cells, &a, sizeof a);
    std::memcpy(cells + W, &b, sizeof b);
  }
  // The sum over what `store_row` stored, by lanes.
  static BLIP_FAST_INLINE f32<W> add_row(const f32<W>& sum, const uint32_t* cells) {
    return sum + load_vector<f32<W>>(cells) + load_vector<f32<W>>(cells + W);
  }
  // W values of one row, and of the row after it where a cell holds two, as cells along the lanes.
  static BLIP_FAST_INLINE void store_depth(uint32_t* cells, const f32<W> (&rows)[1]) {
    std::memcpy(cells, rows, sizeof rows);
  }
  // 2^t for t <= 0 to a relative error of 2e-9 before rounding; 2^-126 below -126.
  static BLIP_FAST_INLINE f32<W> exp2(const f32<W>& t) {
    const f32<W> low = f32<W>{} - 126.0f;
    const f32<W> x = t < low ? low : t;  // NaN stays
    const f32<W> shifted = x + 0x1.8p23f;
    const f32<W> f = x - (shifted - 0x1.8p23f);
    const f32<W> power = (f32<W>)(((u32<W>)shifted << 23) + 0x3f800000u);
    f32<W> p = f * 1.5345804e-4f + 1.3399931e-3f;
    p = p * f + 9.6184890e-3f;
    p = p * f + 5.5503288e-2f;
    p = p * f + 2.4022647e-1f;
    p = p * f + 6.9314721e-1f;
    return (p * f + 1.0f) * power;
  }
};

#if defined(__x86_64__)
// Two bfloat16 to a cell. The instructions are assembly, because an intrinsic may not stand in a
// function that leaves its instruction set to its caller.
struct PairCells {
  using Element = BFloat16;
  static constexpr int kWidth = 16;
  static constexpr int kDepth = 2;
  static constexpr int kPieces = 1;
  static constexpr int64_t kChain = 1 << 30;  // inputs are rounded far more coarsely than sums

  static BLIP_FAST_INLINE f32<16> madd(const f32<16>& before, const u32<16>& a, const u32<16>& b) {
    f32<16> sum = before;
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
  }
  static BLIP_FAST_INLINE void load(const BFloat16* from, int64_t count, u32<16> (&cells)[1]) {
    cells[0] = load_bits<16>(from, count);
  }
  static BLIP_FAST_INLINE void store_row(uint32_t* cells, const f32<16>& a, const f32<16>& b) {
    u32<16> packed;
    asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(packed) : "v"(a), "v"(b));
    std::memcpy(cells, &packed, sizeof packed);
  }
  static BLIP_FAST_INLINE f32<16> add_row(const f32<16>& sum, const uint32_t* cells) {
    return madd(sum, load_vector<u32<16>>(cells), u32<16>{} + 0x3f803f80u);
  }
  static BLIP_FAST_INLINE void store_depth(uint32_t* cells, const f32<16> (&rows)[2]) {
    typedef uint16_t Halves __attribute__((vector_size(64)));
    Halves packed;
    asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(packed) : "v"(rows[0]), "v"(rows[1]));
    packed = __builtin_shufflevector(packed, packed, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6,
                                     22, 7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14,
                                     30, 15, 31);
    std::memcpy(cells, &packed, sizeof packed);
  }
  // 2^t to a relative error of 8e-5, a fiftieth of a rounding to bfloat16.
  static BLIP_FAST_INLINE f32<16> exp2(const f32<16>& t) {
    f32<16> whole, result;
    asm("vrndscaleps $0, %1, %0" : "=v"(whole) : "v"(t));
    const f32<16> f = t - whole;
    f32<16> p = f * 5.5171589e-2f + 2.4261115e-1f;
    p = p * f + 6.9326100e-1f;
    p = p * f + 9.9992807e-1f;
    asm("vscalefps %2, %1, %0" : "=v"(result) : "v"(p), "v"(whole));
    return result;
  }
};
#endif

// C[rows][lanes] (+)= A[rows][depth] * B[depth][lanes]; lanes are whole multiples of 2W. A cell of
// A lies at a[row * a_stride + k * a_step], so that a panel laid out as B serves as its transpose.
struct Product {
  const uint32_t* a;
  int64_t a_stride, a_step;
  const uint32_t* b;
  int64_t b_stride;
  float* c;
  int64_t c_stride;
  int64_t rows, lanes, depth;
  bool add;
};

// Rows and vectors of C that stay in registers: 24 of 32, or 12 of 16.
inline constexpr int kRegisterRows = 6;
template <int W>
inline constexpr int kRegisterVectors = W == 16 ? 4 : 2;

template <class Cells, int kRows, int kVectors>
BLIP_FAST_INLINE void multiply_tile(const Product& p, int64_t row, int64_t lane) {
  constexpr int W = Cells::kWidth;
  float* const c = p.c + row * p.c_stride + lane;
  const uint32_t* a = p.a + row * p.a_stride;
  const uint32_t* b = p.b + lane;
  f32<W> sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      sum[r][v] = f32<W>{};
    }
  }
  for (int64_t k = 0; k < p.depth; ++k, a += p.a_step, b += p.b_stride) {
    u32<W> right[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) right[v] = load_vector<u32<W>>(b + v * W);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const u32<W> left = u32<W>{} + a[r * p.a_stride];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[r][v] = Cells::madd(sum[r][v], left, right[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      float* const to = c + r * p.c_stride + v * W;
      if (p.add) sum[r][v] = load_vector<f32<W>>(to) + sum[r][v];
      std::memcpy(to, &sum[r][v], sizeof(f32<W>));
    }
  }
}

template <class Cells, int kVectors>
BLIP_FAST_INLINE void multiply_columns(const Product& p, int64_t lane) {
  int64_t row = 0;
  for (; row + kRegisterRows <= p.rows; row += kRegisterRows) {
    multiply_tile<Cells, kRegisterRows, kVectors>(p, row, lane);
  }
  switch (p.rows - row) {
    case 1: return multiply_tile<Cells, 1, kVectors>(p, row, lane);
    case 2: return multiply_tile<Cells, 2, kVectors>(p, row, lane);
    case 3: return multiply_tile<Cells, 3, kVectors>(p, row, lane);
    case 4: return multiply_tile<Cells, 4, kVectors>(p, row, lane);
    case 5: return multiply_tile<Cells, 5, kVectors>(p, row, lane);
    default: return;
  }
}

template <class Cells>
BLIP_FAST_INLINE void multiply_all(const Product& whole) {
  constexpr int kStep = kRegisterVectors<Cells::kWidth> * Cells::kWidth;
  Product p = whole;
  for (int64_t k = 0; k < whole.depth; k += Cells::kChain) {
    p.depth = std::min(Cells::kChain, whole.depth - k);
    int64_t lane = 0;
    for (; lane + kStep <= p.lanes; lane += kStep) {
      multiply_columns<Cells, kRegisterVectors<Cells::kWidth>>(p, lane);
    }
    if (lane < p.lanes) multiply_columns<Cells, 2>(p, lane);
    p.a += p.depth * p.a_step;
    p.b += p.depth * p.b_stride;
    p.add = true;
  }
}

// An instruction set with its kind of cell. `multiply` is a real call: its body is long, and every
// kernel calls it in several places.
template <class T>
struct PortableLevel {
  using Cells = FloatCells<4, T>;
  static __attribute__((noinline)) void multiply(const Product& p) { multiply_all<Cells>(p); }
};

#if defined(__x86_64__)
template <class T>
struct Avx2Level {
  using Cells = FloatCells<8, T>;
  static __attribute__((noinline)) BLIP_FAST_TARGET_AVX2 void multiply(const Product& p) {
    multiply_all<Cells>(p);
  }
};
template <class T>
struct Avx512Level {
  using Cells = FloatCells<16, T>;
  static __attribute__((noinline)) BLIP_FAST_TARGET_AVX512 void multiply(const Product& p) {
    multiply_all<Cells>(p);
  }
};
struct Avx512Bf16Level {
  using Cells = PairCells;
  static __attribute__((noinline)) BLIP_FAST_TARGET_AVX512BF16 void multiply(const Product& p) {
    multiply_all<Cells>(p);
  }
};
#endif

}  // namespace blip_fast

// Transposes blocks of 16 x 16 words of 32 bits in AVX-512 registers.
#pragma once

#include <cstdint>
#include <cstring>

#include <blip_fast/vec.h>

namespace blip_fast {

#if defined(__x86_64__)
namespace detail {

// As assembly, because the compiler takes shuffles apart before it knows the instruction set.
#define BLIP_FAST_SHUFFLE(name, instruction)                                        \
  BLIP_FAST_INLINE u32<16> name(const u32<16>& a, const u32<16>& b) {               \
    u32<16> to;                                                                     \
    asm(instruction " %2, %1, %0" : "=v"(to) : "v"(a), "v"(b));                     \
    return to;                                                                      \
  }
BLIP_FAST_SHUFFLE(low_words, "vpunpckldq")
BLIP_FAST_SHUFFLE(high_words, "vpunpckhdq")
BLIP_FAST_SHUFFLE(low_pairs, "vpunpcklqdq")
BLIP_FAST_SHUFFLE(high_pairs, "vpunpckhqdq")
#undef BLIP_FAST_SHUFFLE

// Quarters 0 and 2, or 1 and 3, of `a`, then those of `b`.
BLIP_FAST_INLINE u32<16> even_quarters(const u32<16>& a, const u32<16>& b) {
  u32<16> to;
  asm("vshufi32x4 $0x88, %2, %1, %0" : "=v"(to) : "v"(a), "v"(b));
  return to;
}
BLIP_FAST_INLINE u32<16> odd_quarters(const u32<16>& a, const u32<16>& b) {
  u32<16> to;
  asm("vshufi32x4 $0xdd, %2, %1, %0" : "=v"(to) : "v"(a), "v"(b));
  return to;
}

}  // namespace detail

// to[j * to_stride + i] = from[i][j]; strides in words.
template <class Row>
BLIP_FAST_INLINE void transpose_16x16(const Row& from, uint32_t* to, int64_t to_stride) {
  u32<16> a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) a[i] = load_vector<u32<16>>(from(i));
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    b[i] = detail::low_words(a[i], a[i + 1]);
    b[i + 1] = detail::high_words(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    a[i] = detail::low_pairs(b[i], b[i + 2]);
    a[i + 1] = detail::high_pairs(b[i], b[i + 2]);
    a[i + 2] = detail::low_pairs(b[i + 1], b[i + 3]);
    a[i + 3] = detail::high_pairs(b[i + 1], b[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    b[i] = detail::even_quarters(a[i], a[i + 4]);
    b[i + 4] = detail::odd_quarters(a[i], a[i + 4]);
    b[i + 8] = detail::even_quarters(a[i + 8], a[i + 12]);
    b[i + 12] = detail::odd_quarters(a[i + 8], a[i + 12]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const u32<16> low = detail::even_quarters(b[i], b[i + 8]);
    const u32<16> high = detail::odd_quarters(b[i], b[i + 8]);
    std::memcpy(to + i * to_stride, &low, sizeof low);
    std::memcpy(to + (i + 8) * to_stride, &high, sizeof high);
  }
}
#endif

}  // namespace blip_fast

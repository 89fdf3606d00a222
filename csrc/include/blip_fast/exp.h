// e^x of a vector, for softmax: x at most about 1, exact to float32 or to spare for bfloat16.
#pragma once

#include <blip_fast/vec.h>

namespace blip_fast {

namespace detail {

// The larger of each lane; NaN if `x` is. The compiler makes two instructions of `?:`.
template <int W>
BLIP_FAST_INLINE f32<W> at_least(const f32<W>& x, const f32<W>& floor) {
#if defined(__x86_64__)
  if constexpr (W >= 8) {
    f32<W> larger;
    asm("vmaxps %1, %2, %0" : "=v"(larger) : "v"(x), "v"(floor));
    return larger;
  }
#endif
  return floor > x ? floor : x;
}

// y * 2^n for an integer n that was rounded by adding kRound to it; `rounded` is that sum.
inline constexpr float kRound = 12582912.0f;  // 1.5 * 2^23

template <int W>
BLIP_FAST_INLINE f32<W> scale_by_power(const f32<W>& y, const f32<W>& rounded) {
  return (f32<W>)((u32<W>)y + ((u32<W>)rounded << 23));
}

}  // namespace detail

// x = n ln 2 + r with an integer n, which goes into the exponent, and |r| <= ln 2 / 2, for which a
// polynomial of least relative error stands. To float32: ln 2 in two parts, degree 6 (2e-9). Below
// -87, -inf included, the result is about 2^-126 (or less); NaN stays NaN.
template <int W>
BLIP_FAST_INLINE f32<W> exp_exact(const f32<W>& from) {
  const f32<W> x = detail::at_least<W>(from, f32<W>{} - 87.0f);
  const f32<W> rounded = x * 1.44269504f + detail::kRound;
  const f32<W> n = rounded - detail::kRound;
  const f32<W> r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  f32<W> y = r * 1.38368454e-3f + 8.3748158e-3f;
  y = y * r + 4.16682256e-2f;
  y = y * r + 1.66664202e-1f;
  y = y * r + 4.99999921e-1f;
  y = y * r + 1.0f;
  y = y * r + 1.0f;
  return detail::scale_by_power<W>(y, rounded);
}

// 2^x to 3e-6, a thousandth of bfloat16's rounding.
template <int W>
BLIP_FAST_INLINE f32<W> exp2_rough(const f32<W>& from) {
  const auto polynomial = [](const f32<W>& f) __attribute__((always_inline)) {
    f32<W> y = f * 9.5701011e-3f + 5.5917860e-2f;
    y = y * f + 2.4024745e-1f;
    y = y * f + 6.9312181e-1f;
    return y * f + 9.9999926e-1f;
  };
#if defined(__x86_64__)
  if constexpr (W == 16) {
    f32<W> n, f, y;
    asm("vrndscaleps $0, %1, %0" : "=v"(n) : "v"(from));  // nearest integer
    asm("vreduceps $0, %1, %0" : "=v"(f) : "v"(from));    // what is left; 0 for -inf
    asm("vscalefps %2, %1, %0" : "=v"(y) : "v"(polynomial(f)), "v"(n));
    return y;
  }
#endif
  const f32<W> x = detail::at_least<W>(from, f32<W>{} - 126.0f);
  const f32<W> rounded = x + detail::kRound;
  return detail::scale_by_power<W>(polynomial(x - (rounded - detail::kRound)), rounded);
}

// The exponential of a softmax in T: of(kFactor * x) is e^x.
template <int W, class T>
struct SoftmaxExp {
  static constexpr float kFactor = 1.44269504f;
  static BLIP_FAST_INLINE f32<W> of(const f32<W>& x) { return exp2_rough<W>(x); }
};
template <int W>
struct SoftmaxExp<W, float> {
  static constexpr float kFactor = 1.0f;
  static BLIP_FAST_INLINE f32<W> of(const f32<W>& x) { return exp_exact<W>(x); }
};

}  // namespace blip_fast

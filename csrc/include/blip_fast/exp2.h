// 2^x of a vector, for softmax: x at most about 1, exact to float32 or to spare for bfloat16.
#pragma once

#include <blip_fast/vec.h>

namespace blip_fast {

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

// x is split into an integer, which goes into the exponent, and f in [-0.5, 0.5], for which a
// polynomial of least relative error stands (degree 6: 2e-9, degree 4: 3e-6). Below -126, -inf
// included, the result is 2^-126; NaN stays NaN.
template <int W, class T>
BLIP_FAST_INLINE f32<W> exp2_below(const f32<W>& exponent) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const f32<W> x = exponent < -126.0f ? f32<W>{} - 126.0f : exponent;
  const f32<W> shifted = x + kRound;
  const f32<W> f = x - (shifted - kRound);
  f32<W> y;
  if constexpr (std::is_same_v<T, float>) {
    y = f * 1.5345811e-4f + 1.3399931e-3f;
    y = y * f + 9.618489e-3f;
    y = y * f + 5.5503288e-2f;
    y = y * f + 2.4022647e-1f;
    y = y * f + 6.9314721e-1f;
    y = y * f + 1.0f;
  } else {
    y = f * 9.5701011e-3f + 5.5917860e-2f;
    y = y * f + 2.4024745e-1f;
    y = y * f + 6.9312181e-1f;
    y = y * f + 9.9999926e-1f;
  }
  return (f32<W>)((u32<W>)y + ((u32<W>)shifted << 23));
}

}  // namespace blip_fast

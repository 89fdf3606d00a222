// The exact GELU, x (1 + erf(x / sqrt 2)) / 2, on vectors of float32.
#pragma once

#include <blip_fast/vec.h>

namespace blip_fast {

// erf to 4e-7: x P(x^2) / Q(x^2), fitted to the least relative error (2.5e-8) for |x| <= 4, beyond
// which float32 rounds erf to one.
template <int W>
BLIP_FAST_INLINE f32<W> erf(f32<W> x) {
  x = x > 4.0f ? f32<W>{} + 4.0f : x;  // NaN compares false and stays
  x = x < -4.0f ? f32<W>{} - 4.0f : x;
  const f32<W> t = x * x;
  f32<W> p = t * 1.986784496e-06f + 2.845640979e-04f;
  p = p * t + 3.883290331e-03f;
  p = p * t + 5.310158265e-02f;
  p = p * t + 1.935439030e-01f;
  p = p * t + 1.128379139e+00f;
  f32<W> q = t * 3.742010037e-05f + 1.185556911e-03f;
  q = q * t + 1.520714574e-02f;
  q = q * t + 1.153495116e-01f;
  q = q * t + 5.048563743e-01f;
  q = q * t + 1.0f;
  const f32<W> y = x * p / q;
  const f32<W> low = y < -1.0f ? f32<W>{} - 1.0f : y;
  return low > 1.0f ? f32<W>{} + 1.0f : low;
}

template <int W>
BLIP_FAST_INLINE f32<W> gelu(const f32<W>& x) {
  const f32<W> half = x * 0.5f;
  return half + half * erf<W>(x * 0.70710678118654752f);
}

}  // namespace blip_fast

// A softmax over keys that many threads share: each has a part, and parts are added up.
#pragma once

#include <cstdint>

#include <cuda_runtime.h>

#include <blip_fast/block.cuh>

namespace blip_fast {

constexpr int kWarp = 32;
constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline float minus_infinity() { return -__builtin_huge_valf(); }

// What scores are taken relative to. Without keys there is no largest score, and -inf - -inf is
// NaN.
__device__ inline float finite(float top) { return top == minus_infinity() ? 0.0f : top; }

// The keys that somebody has seen: for each query the largest score (of base 2), the sum of the
// weights exp2(score - top), and the sum of values times weights.
template <int kWidth, int kQueries>
struct Part {
  float top[kQueries], total[kQueries];
  float sum[kQueries][kWidth];
};

// Adds up `count` parts, part_of(i), always in this order, for columns `first`, `first + step`, ...
// of all queries laid side by side; done(query, column, top, total, sum) takes the results.
template <int kWidth, class PartOf, class Done>
__device__ void merge(int queries, int count, int first, int step, const PartOf& part_of,
                      const Done& done) {
  for (int i = first; i < queries * kWidth; i += step) {
    const int query = i / kWidth, column = i % kWidth;
    float top = minus_infinity();
    for (int p = 0; p < count; ++p) top = fmaxf(top, part_of(p)->top[query]);
    float total = 0.0f, sum = 0.0f;
    for (int p = 0; p < count; ++p) {
      const auto* const part = part_of(p);
      const float weight = exp2f(part->top[query] - finite(top));
      total += weight * part->total[query];
      sum += weight * part->sum[query][column];
    }
    done(query, column, top, total, sum);
  }
}

}  // namespace blip_fast

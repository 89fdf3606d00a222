// The largest values of a row, in one order: by value descending, then by index ascending.
//
// A row of 30,524 scores is read once, for the largest value of each block of 64. The k-th largest
// of those is a bound that at least k values reach, and only blocks that reach it are read again.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include <blip_fast/vec.h>

namespace blip_fast {

constexpr int64_t kRankBlock = 64;
constexpr float kLowest = -std::numeric_limits<float>::infinity();

// A value and its place in one number: a larger one ranks first. Both zeros are one value.
using RankKey = uint64_t;

inline RankKey rank_key(float value, uint32_t index) {
  const uint32_t bits = std::bit_cast<uint32_t>(value + 0.0f);
  const uint32_t order = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return (uint64_t{order} << 32) | static_cast<uint32_t>(~index);
}

inline float key_value(RankKey key) {
  const uint32_t order = static_cast<uint32_t>(key >> 32);
  return std::bit_cast<float>(order & 0x80000000u ? order & 0x7fffffffu : ~order);
}

inline uint32_t key_index(RankKey key) { return ~static_cast<uint32_t>(key); }

inline int64_t rank_blocks(int64_t n) { return (n + kRankBlock - 1) / kRankBlock; }

// Writes the largest value of each block of the row plus `shift`, -inf where all are NaN.
template <int W>
BLIP_FAST_INLINE void block_maxima(const float* row, int64_t n, float shift, float* maxima) {
  int64_t begin = 0;
  for (; begin + kRankBlock <= n; begin += kRankBlock) {
    f32<W> most = f32<W>{} + kLowest;
    for (int64_t i = begin; i < begin + kRankBlock; i += W) {
      most = larger<W>(load_vector<f32<W>>(row + i), most);
    }
    *maxima++ = reduce_max<W>(most) + shift;
  }
  if (begin == n) return;
  float most = kLowest;
  for (int64_t i = begin; i < n; ++i) most = row[i] > most ? row[i] : most;
  *maxima = most + shift;
}

// A value that at least `k` of those below `maxima` reach; -inf where there are too few blocks.
inline float bound_of(const std::vector<float>& maxima, int64_t k, std::vector<float>& scratch) {
  if (k > static_cast<int64_t>(maxima.size())) return kLowest;
  scratch = maxima;
  std::nth_element(scratch.begin(), scratch.begin() + (k - 1), scratch.end(), std::greater<>());
  return scratch[k - 1];
}

// Appends the keys of all values of the row plus `shift` that reach `bound`; NaN never does.
inline void collect(const float* row, int64_t n, float shift, const float* maxima, float bound,
                    uint32_t first_index, std::vector<RankKey>& keys) {
  for (int64_t block = 0; block < rank_blocks(n); ++block) {
    if (!(maxima[block] >= bound)) continue;
    const int64_t begin = block * kRankBlock, end = std::min(n, begin + kRankBlock);
    for (int64_t i = begin; i < end; ++i) {
      const float value = row[i] + shift;
      if (value >= bound) keys.push_back(rank_key(value, first_index + static_cast<uint32_t>(i)));
    }
  }
}

// Leaves the first `k` keys, in order; fewer where there are fewer.
inline void keep_first(std::vector<RankKey>& keys, int64_t k) {
  const auto middle = keys.begin() + std::min<int64_t>(k, keys.size());
  if (middle != keys.end()) {
    std::nth_element(keys.begin(), middle, keys.end(), std::greater<>());
    keys.erase(middle, keys.end());
  }
  std::sort(keys.begin(), keys.end(), std::greater<>());
}

}  // namespace blip_fast

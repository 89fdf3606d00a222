// Attention of 16 queries on tiles, in one pass over the keys, for heads of 64 bfloat16.
//
// The outputs live in four tiles. A step takes 32 keys: their scores are made while the step before
// is turned into weights and the one before that is multiplied with its values, a tile operation
// between one row of weights and the next. After a tile operation wide vector arithmetic runs at
// half its speed for a while, and a tile stored outside the L1 cache takes four times as long: so
// the two are interleaved one by one, and scores and weights live in rings of 6 KB.
//
// Weights are taken against the largest score of the first step instead of the row's own largest:
// they have float32's exponents, so any reference serves that keeps their sum and the products with
// them finite. A row where it does not is done again, exactly, by `attend`.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include <blip_fast/attend.h>
#include <blip_fast/dot.h>
#include <blip_fast/tile.h>

namespace blip_fast {

inline constexpr int64_t kTiledWidth = 64;  // of a head: two tiles of queries, four of outputs
inline constexpr int64_t kStep = 32;        // keys: a row of a tile of weights
// A sum of weights that is not below is taken for an overflow. None is below 1, since the reference
// is one of the scores.
inline constexpr float kMostWeight = 0x1p64f;

inline constexpr int64_t kTileUnits = kTileRows * kTileWords;
inline constexpr int64_t kRowOfKeys = kBlock * 4;  // bytes from a pair of elements to the next
inline constexpr int64_t kRowOfLanes = kTiledWidth * 4;  // bytes: of values, of outputs

inline constexpr Tile<4> kFirstScores;
inline constexpr Tile<5> kLastScores;
inline constexpr Tile<6> kLeft;
inline constexpr Tile<7> kRight;

// What a block of queries holds between its steps.
struct Rings {
  alignas(64) float scores[2][2 * kTileUnits];  // two tiles of 16 keys, one after the other
  alignas(64) uint32_t weights[2][kTileUnits];
  alignas(64) float sums[kTileRows * kTiledWidth];
  alignas(64) float totals[kTileRows * kTileWords];  // lanes of each row's sum of weights
  float tops[kTileRows];
};

template <class Level, class T>
BLIP_FAST_INLINE void pack_task_for_tiles(const AttentionJob<T>& job, const AttentionTask& task,
                                          Scratch<Level>& s) {
  pack_task<Level>(job, task, s);
  // Whole steps: weights beyond the keys are zero, but zero times what lies here might be NaN.
  const int64_t units = (task.length + 1) / 2, end = round_up(task.length, kStep) / 2;
  std::fill(s.values + units * s.lanes, s.values + end * s.lanes, 0u);
}

// A block of queries of one head.
template <class Level, class Tiles>
struct TiledBlock {
  static constexpr int W = Level::W;
  Tiles& tiles;
  const Scratch<Level>& s;
  Rings& rings;
  float scale;  // to exponents of two
  f32<W> totals[kTileRows] = {};

  // Tile operations of a step, in their order. Even and odd halves of the width, 16 keys at a time:
  template <int kSlot>
  BLIP_FAST_INLINE void score(int64_t step) {
    const uint32_t* const keys = s.keys + step * kStep / kBlock * (kTiledWidth / 2) * kBlock +
                                 step * kStep % kBlock;
    const uint32_t* const second = keys + kTileRows * kBlock;
    float* const scores = rings.scores[step % 2];
    if constexpr (kSlot == 0) {
      tiles.zero(kFirstScores);
      tiles.load(kLeft, s.queries, kTiledWidth * 2);
    } else if constexpr (kSlot == 1) {
      tiles.load(kRight, keys, kRowOfKeys);
      tiles.add_pairs(kFirstScores, kLeft, kRight);
    } else if constexpr (kSlot == 2) {
      tiles.zero(kLastScores);
      tiles.load(kRight, keys + kTileWords, kRowOfKeys);
    } else if constexpr (kSlot == 3) {
      tiles.add_pairs(kLastScores, kLeft, kRight);
    } else if constexpr (kSlot == 4) {
      tiles.load(kLeft, s.queries + kTileWords, kTiledWidth * 2);
      tiles.load(kRight, second, kRowOfKeys);
    } else if constexpr (kSlot == 5) {
      tiles.add_pairs(kFirstScores, kLeft, kRight);
    } else if constexpr (kSlot == 6) {
      tiles.load(kRight, second + kTileWords, kRowOfKeys);
    } else if constexpr (kSlot == 7) {
      tiles.add_pairs(kLastScores, kLeft, kRight);
    } else if constexpr (kSlot == 12) {  // when the products are done
      tiles.store(kFirstScores, scores, kTileBytes);
    } else if constexpr (kSlot == 15) {
      tiles.store(kLastScores, scores + kTileUnits, kTileBytes);
    }
  }

  // The outputs, a quarter of the width at a time.
  template <int kSlot>
  BLIP_FAST_INLINE void multiply_values(int64_t step) {
    const uint32_t* const values = s.values + step * kTileRows * kTiledWidth;
    if constexpr (kSlot == 8) tiles.load(kLeft, rings.weights[step % 2], kTileBytes);
    if constexpr (kSlot == 8 || kSlot == 10 || kSlot == 11 || kSlot == 13) {
      constexpr int kQuarter = kSlot == 8 ? 0 : kSlot == 13 ? 3 : kSlot - 9;
      tiles.load(kRight, values + kQuarter * kTileWords, kRowOfLanes);
    }
    if constexpr (kSlot == 9) tiles.add_pairs(Tile<0>{}, kLeft, kRight);
    if constexpr (kSlot == 10) tiles.add_pairs(Tile<1>{}, kLeft, kRight);
    if constexpr (kSlot == 12) tiles.add_pairs(Tile<2>{}, kLeft, kRight);
    if constexpr (kSlot == 14) tiles.add_pairs(Tile<3>{}, kLeft, kRight);
  }

  // Weights of the 2W keys of a row from key `at` of a step on. Their exponents reach any size.
  BLIP_FAST_INLINE typename Level::Vector weights(const float* scores, int row, int64_t at) {
    const auto of = [&](int64_t key) __attribute__((always_inline)) {
      const float* const from = scores + key / kTileWords * kTileUnits + row * kTileWords;
      f32<W> x = load_vector<f32<W>>(from + key % kTileWords);
      x = (x - broadcast<W>(rings.tops + row)) * broadcast<W>(&scale);
      if constexpr (W < 16) x = x < 127.0f ? x : f32<W>{} + 127.0f;  // NaN too
      return SoftmaxExp<W, BFloat16>::of(x);
    };
    return Level::narrow_in_order(of(at), of(at + W));
  }

  // A row of a step whose keys the query sees all.
  template <int kRow>
  BLIP_FAST_INLINE void weigh(int64_t step) {
#pragma GCC unroll 4
    for (int64_t at = 0; at < kStep; at += 2 * W) {
      const typename Level::Vector bits = weights(rings.scores[step % 2], kRow, at);
      std::memcpy(rings.weights[step % 2] + kRow * kTileWords + at / 2, &bits, sizeof bits);
      Level::add(totals[kRow], bits, typename Level::Vector{} + 0x3f803f80u);  // two ones
    }
  }

  // A row of a step of whose keys the query sees the first `seen`, perhaps none.
  template <int kRow>
  BLIP_FAST_INLINE void weigh_some(int64_t step, int64_t seen) {
    uint32_t* const row = rings.weights[step % 2] + kRow * kTileWords;
    for (int64_t at = 0; at < kStep; at += 2 * W) {
      const typename Level::Vector bits = weights(rings.scores[step % 2], kRow, at);
      std::memcpy(row + at / 2, &bits, sizeof bits);
    }
    std::memset(reinterpret_cast<uint16_t*>(row) + seen, 0, (kStep - seen) * 2);
    for (int64_t at = 0; at < kTileWords; at += W) {
      Level::add(totals[kRow], load_vector<typename Level::Vector>(row + at),
                 typename Level::Vector{} + 0x3f803f80u);
    }
  }

  // The largest of the first `seen` scores of a row.
  BLIP_FAST_INLINE float largest(int64_t row, int64_t seen) const {
    float scores[kStep];
    for (int64_t half = 0; half < 2; ++half) {
      std::memcpy(scores + half * kTileWords,
                  rings.scores[0] + half * kTileUnits + row * kTileWords, kTileBytes);
    }
    std::fill(scores + seen, scores + kStep, -INFINITY);
    f32<W> most = load_vector<f32<W>>(scores);
    for (int64_t i = W; i < kStep; i += W) {
      const f32<W> more = load_vector<f32<W>>(scores + i);
      most = more > most ? more : most;
    }
    return reduce_max<W>(most);
  }

  // All steps of queries of which number i sees seen(i) keys, in ascending order, the last `keys`.
  template <class Seen>
  BLIP_FAST_INLINE void run(int64_t keys, const Seen& seen) {
    const int64_t steps = (keys + kStep - 1) / kStep, whole = seen(0) / kStep;
    const auto score_at_once = [&](int64_t step) __attribute__((always_inline)) {
      unroll<16>([&](auto slot) __attribute__((always_inline)) { score<slot>(step); });
    };
    const auto multiply_at_once = [&](int64_t step) __attribute__((always_inline)) {
      unroll<16>([&](auto slot) __attribute__((always_inline)) { multiply_values<slot>(step); });
    };
    unroll<4>([&](auto quarter) __attribute__((always_inline)) { tiles.zero(Tile<quarter>{}); });
    score_at_once(0);
    for (int64_t i = 0; i < kTileRows; ++i) {
      rings.tops[i] = largest(i, std::min(seen(i), kStep));
    }
    for (int64_t step = 0; step < steps; ++step) {
      if (step > 0 && step + 1 < steps && step < whole) {
        unroll<16>([&](auto slot) __attribute__((always_inline)) {
          score<slot>(step + 1);
          multiply_values<slot>(step - 1);
          weigh<slot>(step);
        });
        continue;
      }
      if (step + 1 < steps) score_at_once(step + 1);
      unroll<16>([&](auto row) __attribute__((always_inline)) {
        weigh_some<row>(step, std::clamp<int64_t>(seen(row) - step * kStep, 0, kStep));
      });
      if (step > 0) multiply_at_once(step - 1);
    }
    multiply_at_once(steps - 1);
    unroll<4>([&](auto quarter) __attribute__((always_inline)) {
      tiles.store(Tile<quarter>{}, rings.sums + quarter * kTileWords, kRowOfLanes);
    });
    unroll<16>([&](auto row) __attribute__((always_inline)) {
      const f32<W> total = totals[row];
      std::memcpy(rings.totals + row * kTileWords, &total, sizeof total);
    });
  }
};

// Whether all of a row's outputs are finite.
template <int W>
BLIP_FAST_INLINE bool all_finite(const float* row) {
  f32<W> zeros{};
  for (int64_t i = 0; i < kTiledWidth; i += W) zeros += load_vector<f32<W>>(row + i) * 0.0f;
  return reduce_add<W>(zeros) == 0.0f;
}

// Queries `from` to `from + count` <= 16 of a task whose keys and values are packed for tiles.
template <class Level, class Tiles>
BLIP_FAST_INLINE void attend_on_tiles(const AttentionJob<BFloat16>& job, const AttentionTask& task,
                                      Scratch<Level>& s, Rings& rings, Tiles& tiles, int64_t from,
                                      int64_t count) {
  constexpr int W = Level::W;
  const AttentionShape& shape = job.shape;
  const int64_t keys = shape.seen(task, from + count - 1);
  const float scale = 1.0f / std::sqrt(static_cast<float>(kTiledWidth));
  pack_left<Level>(shape.rows(job.qkv, 0, task, from, count), s.queries);
  std::fill(s.queries + count * s.units, s.queries + kTileRows * s.units, 0u);
  TiledBlock<Level, Tiles> block{tiles, s, rings, scale * SoftmaxExp<W, BFloat16>::kFactor};
  block.run(keys, [&](int64_t i) __attribute__((always_inline)) {
    return std::min(shape.seen(task, from + i), keys);
  });

  BFloat16* const out = job.out + (task.first + from) * shape.row() + task.head * kTiledWidth;
  bool again[kTileRows];
  for (int64_t i = 0; i < count; ++i) {
    const float total = reduce_add<W>(load_vector<f32<W>>(rings.totals + i * kTileWords));
    const float* const sums = rings.sums + i * kTiledWidth;
    again[i] = !(total < kMostWeight && all_finite<W>(sums));
    if (again[i]) continue;
    write_out<W>(sums, total, out + i * shape.row(), kTiledWidth);
    job.logsumexp[(task.first + from + i) * shape.heads + task.head] =
        rings.tops[i] * scale + std::log(total);
  }
  for (int64_t i = 0, end; i < count; i = end) {
    for (end = i + 1; end < count && again[end] == again[i];) ++end;
    if (again[i]) attend<Level>(job, task, s, from + i, end - i);
  }
}

}  // namespace blip_fast

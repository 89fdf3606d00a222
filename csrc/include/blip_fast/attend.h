// A block of queries against all their keys, for every instruction set: the whole rows of scores,
// an exact softmax, then the values.
//
// Keys and values of one head of one sequence are packed once and stay in the L2 cache; a block of
// queries holds its whole rows of scores there, so that the softmax knows the largest score and
// nothing is rescaled. The weights are summed as rounded: summing them unrounded would leave the
// rounding of a peaked row's largest weight in the result.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include <blip_fast/attention.h>
#include <blip_fast/exp.h>

namespace blip_fast {

// Queries that share a pass over the keys: four tiles.
inline constexpr int64_t kQueries = 24;

template <class T>
struct AttentionJob {
  const AttentionShape& shape;
  const std::vector<AttentionTask>& tasks;
  const T* qkv;
  T* out;            // [T, H, D]
  float* logsumexp;  // [T, H]
};

// Turns scores[0, seen) into weights exp(scale * (score - largest)), and those up to `padded`, a
// multiple of 2W, into zero. `scale` includes SoftmaxExp's factor. Weights are stored as left
// operand: in order, in T if units are pairs.
template <class Level, class T>
BLIP_FAST_INLINE void softmax_row(float* scores, int64_t seen, int64_t padded, float scale,
                                  typename Level::Unit* weights, float* total, float* largest) {
  constexpr int W = Level::W;
  std::fill(scores + seen, scores + padded, -INFINITY);
  f32<W> most = load_vector<f32<W>>(scores), more = load_vector<f32<W>>(scores + W);
  for (int64_t i = 2 * W; i < padded; i += 2 * W) {
    const Pair<W> s = load_pair<W>(scores + i);
    most = s.a > most ? s.a : most;
    more = s.b > more ? s.b : more;
  }
  most = more > most ? more : most;
  const float top = reduce_max<W>(most);

  const f32<W> tops = broadcast<W>(&top), scales = broadcast<W>(&scale);
  f32<W> sum{}, other{};
  for (int64_t i = 0; i < padded; i += 2 * W) {
    const Pair<W> s = load_pair<W>(scores + i);
    // The difference first: it is exact where it matters, at whatever scale the scores are.
    const f32<W> a = SoftmaxExp<W, T>::of((s.a - tops) * scales);
    const f32<W> b = SoftmaxExp<W, T>::of((s.b - tops) * scales);
    if constexpr (Level::kDepth == 1) {
      store_pair<W>(weights + i, {a, b});
      sum += a;
      other += b;
    } else {
      const auto bits = Level::narrow_in_order(a, b);
      std::memcpy(weights + i / 2, &bits, sizeof bits);
      Level::add(sum, bits, u32<W>{} + 0x3f803f80u);  // two ones
    }
  }
  using Stored = std::conditional_t<Level::kDepth == 1, float, T>;
  std::fill(reinterpret_cast<char*>(weights) + seen * sizeof(Stored),
            reinterpret_cast<char*>(weights) + padded * sizeof(Stored), 0);
  *total = reduce_add<W>(sum + other);
  *largest = top;
}

// What one thread needs for sequences of up to `longest` tokens.
template <class Level>
struct Scratch {
  using Unit = typename Level::Unit;

  Scratch(int64_t longest, int64_t width)
      : units(round_up(width, Level::kDepth) / Level::kDepth),
        lanes(round_up(width, 2 * Level::W)),
        row(round_up(longest, kBlock)),
        arena(row * units + row * lanes + kQueries * (units + 2 * row + lanes) + 6 * 16),
        keys(arena.take<Unit>(row * units)),
        values(arena.take<Unit>(row / Level::kDepth * lanes)),
        queries(arena.take<Unit>(kQueries * units)),
        scores(arena.take<float>(kQueries * row)),
        weights(arena.take<Unit>(kQueries * row / Level::kDepth)),
        sums(arena.take<float>(kQueries * lanes)) {}

  int64_t units, lanes, row;
  Arena arena;
  Unit *keys, *values, *queries;
  float* scores;
  Unit* weights;
  float* sums;
};

// The scores of `count` queries against the first `keys` keys, block by block of keys.
template <class Level>
BLIP_FAST_INLINE void score(const Scratch<Level>& s, int64_t count, int64_t keys) {
  for (int64_t k = 0; k < keys; k += kBlock) {
    const int64_t columns = std::min(kBlock, round_up(keys - k, 2 * Level::W));
    Level::template multiply<false>({s.queries, s.units, s.keys + k * s.units, kBlock,
                                     s.scores + k, s.row, count, columns / Level::W, s.units});
  }
}

// Divides the sums of a query by its total and rounds them to T.
template <int W, class T>
BLIP_FAST_INLINE void write_out(const float* sums, float total, T* out, int64_t width) {
  const float inverse = 1.0f / total;
  const f32<W> share = broadcast<W>(&inverse);
  for (int64_t i = 0; i < width; i += 2 * W) {
    const Pair<W> v = load_pair<W>(sums + i);
    store_bits<W, T>(out + i, Storage<W, T>::narrow({v.a * share, v.b * share}),
                     std::min<int64_t>(2 * W, width - i));
  }
}

// Queries `from` to `from + count` of a task whose keys and values are packed.
template <class Level, class T>
BLIP_FAST_INLINE void attend(const AttentionJob<T>& job, const AttentionTask& task,
                             Scratch<Level>& s, int64_t from, int64_t count) {
  constexpr int W = Level::W;
  const AttentionShape& shape = job.shape;
  const int64_t keys = shape.seen(task, from + count - 1);
  const int64_t padded = round_up(keys, 2 * W);
  const float scale = 1.0f / std::sqrt(static_cast<float>(shape.width));
  float totals[kQueries];
  pack_left<Level>(shape.rows(job.qkv, 0, task, from, count), s.queries);
  score<Level>(s, count, keys);
  for (int64_t i = 0; i < count; ++i) {
    float largest;
    softmax_row<Level, T>(s.scores + i * s.row, shape.seen(task, from + i), padded,
                          scale * SoftmaxExp<W, T>::kFactor,
                          s.weights + i * (s.row / Level::kDepth), &totals[i], &largest);
    job.logsumexp[(task.first + from + i) * shape.heads + task.head] =
        largest * scale + std::log(totals[i]);
  }
  const int64_t depth = round_up(keys, Level::kDepth) / Level::kDepth;
  Level::template multiply<false>({s.weights, s.row / Level::kDepth, s.values, s.lanes, s.sums,
                                   s.lanes, count, s.lanes / W, depth});
  T* const out = job.out + (task.first + from) * shape.row() + task.head * shape.width;
  for (int64_t i = 0; i < count; ++i) {
    write_out<W, T>(s.sums + i * s.lanes, totals[i], out + i * shape.row(), shape.width);
  }
}

// Keys and values of a task's sequence and head, as operands.
template <class Level, class T>
BLIP_FAST_INLINE void pack_task(const AttentionJob<T>& job, const AttentionTask& task,
                                Scratch<Level>& s) {
  pack_right_across<Level>(job.shape.rows(job.qkv, 1, task, 0, task.length), s.keys);
  pack_right<Level>(job.shape.rows(job.qkv, 2, task, 0, task.length), s.values);
}

}  // namespace blip_fast

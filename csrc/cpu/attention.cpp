// Self-attention, forward: for a block of queries all scores, an exact softmax, then the values.
//
// Keys and values of one head of one sequence are packed once and stay in the L2 cache; a block of
// queries holds its whole rows of scores there, so that the softmax knows the largest score and
// nothing is rescaled. The weights are summed as rounded: summing them unrounded would leave the
// rounding of a peaked row's largest weight in the result.

#include <cmath>
#include <tuple>

#include <torch/csrc/stable/library.h>

#include <blip_fast/attention.h>
#include <blip_fast/exp.h>

namespace blip_fast {
namespace {

// Queries that share a pass over the keys: four tiles.
constexpr int64_t kQueries = 24;
constexpr int64_t kGrain = 4096;

template <class T>
struct Job {
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
BLIP_FAST_INLINE void attend(const Job<T>& job, const AttentionTask& task, Scratch<Level>& s,
                             int64_t from, int64_t count) {
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

template <class Level, class T>
BLIP_FAST_INLINE void attend_tasks(const Job<T>& job, int64_t begin, int64_t end) {
  const AttentionShape& shape = job.shape;
  Scratch<Level> scratch(shape.longest, shape.width);
  const AttentionTask* packed = nullptr;
  for (int64_t i = begin; i < end; ++i) {
    const AttentionTask& task = job.tasks[i];
    if (packed == nullptr || packed->first != task.first || packed->head != task.head) {
      pack_right_across<Level>(shape.rows(job.qkv, 1, task, 0, task.length), scratch.keys);
      pack_right<Level>(shape.rows(job.qkv, 2, task, 0, task.length), scratch.values);
      packed = &task;
    }
    for (int64_t from = task.from; from < task.to; from += kQueries) {
      attend<Level, T>(job, task, scratch, from, std::min(kQueries, task.to - from));
    }
  }
}

// One copy for each instruction set.
template <class T>
void attend_portable(const Job<T>& job, int64_t begin, int64_t end) {
  attend_tasks<PortableLevel, T>(job, begin, end);
}

#if defined(__x86_64__)
template <class T>
BLIP_FAST_TARGET_AVX2 void attend_avx2(const Job<T>& job, int64_t begin, int64_t end) {
  attend_tasks<Avx2Level, T>(job, begin, end);
}

template <class T>
BLIP_FAST_TARGET_AVX512 void attend_avx512(const Job<T>& job, int64_t begin, int64_t end) {
  attend_tasks<Avx512Level, T>(job, begin, end);
}

BLIP_FAST_TARGET_AVX512BF16 void attend_avx512bf16(const Job<BFloat16>& job, int64_t begin,
                                                   int64_t end) {
  attend_tasks<Avx512Bf16Level, BFloat16>(job, begin, end);
}
#endif

template <class T>
auto pick_attend() {
#if defined(__x86_64__)
  const Isa isa = current_isa();
  if constexpr (std::is_same_v<T, BFloat16>) {
    if (isa >= Isa::avx512bf16) return &attend_avx512bf16;
  }
  if (isa >= Isa::avx512) return &attend_avx512<T>;
  if (isa == Isa::avx2) return &attend_avx2<T>;
#endif
  return &attend_portable<T>;
}

template <class T>
void run(const AttentionShape& shape, const Tensor& qkv, const Tensor& out,
         const Tensor& logsumexp) {
  // With fewer sequences and heads than threads the queries of one are shared out too; each share
  // packs the keys again, which a few hundred queries outweigh.
  const int64_t wholes = static_cast<int64_t>(shape.offsets.size() - 1) * shape.heads;
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t shares = wholes >= 4 * threads ? 1 : (4 * threads + wholes - 1) / wholes;
  const int64_t rows = std::max<int64_t>(8 * kQueries, (shape.longest + shares - 1) / shares);
  const auto tasks = attention_tasks(shape, round_up(rows, kQueries));
  const Job<T> job{shape, tasks, static_cast<const T*>(qkv.const_data_ptr()),
                   static_cast<T*>(out.mutable_data_ptr()),
                   static_cast<float*>(logsumexp.mutable_data_ptr())};
  const auto attend_range = pick_attend<T>();
  run_tasks(tasks, kGrain,
            [&](int64_t begin, int64_t end) { attend_range(job, begin, end); });
}

// softmax(Q K^T / sqrt(D)) V of each sequence, [.., H, D], and log(sum(exp)) of the scaled scores,
// [.., H], natural.
std::tuple<Tensor, Tensor> attention(const Tensor& qkv, const std::optional<Tensor>& offsets,
                                     int64_t max_length, bool causal) {
  const AttentionShape shape = attention_shape(qkv, offsets, max_length, causal);
  std::vector<int64_t> sizes{shape.heads, shape.width};
  sizes.insert(sizes.begin(), {qkv.size(0)});
  if (!offsets) sizes.insert(sizes.begin() + 1, qkv.size(1));
  Tensor out = torch::stable::new_empty(qkv, sizes);
  sizes.pop_back();
  Tensor logsumexp = torch::stable::new_empty(qkv, sizes, ScalarType::Float);
  const bool empty = out.numel() == 0;
  switch (qkv.scalar_type()) {
    case ScalarType::Float:
      if (!empty) run<float>(shape, qkv, out, logsumexp);
      break;
    case ScalarType::BFloat16:
      if (!empty) run<BFloat16>(shape, qkv, out, logsumexp);
      break;
    default:
      STD_TORCH_CHECK(false, "qkv is ", toString(qkv.scalar_type()),
                      ", expected float32 or bfloat16; pass qkv.float()");
  }
  return {out, logsumexp};
}

}  // namespace
}  // namespace blip_fast

STABLE_TORCH_LIBRARY_IMPL(blip_fast, CPU, m) {
  m.impl("attention.native", TORCH_BOX(&blip_fast::attention));
}

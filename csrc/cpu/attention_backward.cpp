// Self-attention, backward: the weights of a tile are made again from the log-sum-exp, and all
// three gradients take from it while it is in the L1 cache.
//
// With P the weights, G the gradient of the output and d its row sums of G * out:
//     dV = P^T G,   dS = P * (G V^T - d),   dQ = dS K / sqrt(D),   dK = dS^T Q / sqrt(D)
// Tiles are [queries, keys] with keys in lanes, as the scores are. The gradients of keys and values
// are summed transposed, [D, keys], so that P and dS are the right operand as they are.

#include <cmath>

#include <torch/csrc/stable/library.h>

#include <blip_fast/attention.h>
#include <blip_fast/epilogue.h>
#include <blip_fast/exp.h>

namespace blip_fast {
namespace {

// Queries of a tile: two of its operands of 64 keys and their products fill half an L1 cache.
constexpr int64_t kQueries = 48;
constexpr int64_t kGrain = 2048;

template <class T>
struct Job {
  const AttentionShape& shape;
  const std::vector<AttentionTask>& tasks;
  const T* grad;  // [T, H, D]
  const T* qkv;
  const T* out;            // [T, H, D]
  const float* logsumexp;  // [T, H]
  T* grad_qkv;
};

// What one thread needs for sequences of up to `longest` tokens.
template <class Level>
struct Scratch {
  using Unit = typename Level::Unit;
  static constexpr int64_t kDepth = Level::kDepth;
  // Units of a row of the operands that are summed over queries: whole vectors.
  static constexpr int64_t kAcross = round_up(kQueries / kDepth, 16);

  Scratch(int64_t longest, int64_t width)
      : units(round_up(width, kDepth) / kDepth),
        lanes(round_up(width, 2 * Level::W)),
        row(round_up(longest, kBlock)),
        arena(row * (2 * units + lanes + 2 * width) + 20 * 16 +
              kQueries * (2 * units + 5 * kBlock + lanes + 2) + kAcross * 2 * width),
        keys(arena.take<Unit>(row * units)),
        values(arena.take<Unit>(row * units)),
        key_rows(arena.take<Unit>(row / kDepth * lanes)),
        grad_keys(arena.take<float>(row * width)),
        grad_values(arena.take<float>(row * width)),
        queries(arena.take<Unit>(kQueries * units)),
        grads(arena.take<Unit>(kQueries * units)),
        queries_across(arena.take<Unit>(kAcross * width)),
        grads_across(arena.take<Unit>(kAcross * width)),
        scores(arena.take<float>(kQueries * kBlock)),
        slopes(arena.take<float>(kQueries * kBlock)),
        weights(arena.take<Unit>(kQueries / kDepth * kBlock)),
        grad_scores(arena.take<Unit>(kQueries / kDepth * kBlock)),
        grad_score_rows(arena.take<Unit>(kQueries * kBlock / kDepth)),
        grad_queries(arena.take<float>(kQueries * lanes)),
        logsumexp(arena.take<float>(kQueries)),
        products(arena.take<float>(kQueries)) {}

  int64_t units, lanes, row;
  Arena arena;
  Unit *keys, *values, *key_rows;
  float *grad_keys, *grad_values;  // [block, D, key of the block]
  Unit *queries, *grads, *queries_across, *grads_across;
  float *scores, *slopes;          // Q K^T and G V^T of the tile
  Unit *weights, *grad_scores;     // P and dS: [query unit, key]
  Unit* grad_score_rows;           // dS: [query, key unit]
  float* grad_queries;             // [query, D]
  float *logsumexp, *products;     // times SoftmaxExp's factor; d
};

// The sum of the products of two rows.
template <int W, class T>
BLIP_FAST_INLINE float dot(const T* a, const T* b, int64_t width) {
  using S = Storage<W, T>;
  f32<W> sum{}, other{};
  for (int64_t i = 0; i < width; i += 2 * W) {
    const int64_t count = std::min<int64_t>(2 * W, width - i);
    const Pair<W> x = S::widen(load_bits<W>(a + i, count));
    const Pair<W> y = S::widen(load_bits<W>(b + i, count));
    sum += x.a * y.a;
    other += x.b * y.b;
  }
  return reduce_add<W>(sum + other);
}

template <class Level, class T>
BLIP_FAST_INLINE void pack_sequence(const Job<T>& job, const AttentionTask& t, Scratch<Level>& s) {
  const Rows<T> keys = job.shape.rows(job.qkv, 1, t, 0, t.length);
  pack_right_across<Level>(keys, s.keys);
  pack_right_across<Level>(job.shape.rows(job.qkv, 2, t, 0, t.length), s.values);
  pack_right<Level>(keys, s.key_rows);
  std::fill_n(s.grad_keys, s.row * job.shape.width, 0.0f);
  std::fill_n(s.grad_values, s.row * job.shape.width, 0.0f);
}

template <class Level, class T>
BLIP_FAST_INLINE void pack_queries(const Job<T>& job, const AttentionTask& t, int64_t from,
                                   int64_t count, Scratch<Level>& s) {
  const AttentionShape& shape = job.shape;
  const Rows<T> queries = shape.rows(job.qkv, 0, t, from, count);
  const Rows<T> grads = shape.rows_of_out(job.grad, t, from, count);
  const Rows<T> outs = shape.rows_of_out(job.out, t, from, count);
  pack_left<Level>(queries, s.queries);
  pack_left<Level>(grads, s.grads);
  pack_left_across<Level>(queries, s.kAcross, s.queries_across);
  pack_left_across<Level>(grads, s.kAcross, s.grads_across);
  for (int64_t i = 0; i < count; ++i) {
    s.logsumexp[i] = job.logsumexp[(t.first + from + i) * shape.heads + t.head] *
                     SoftmaxExp<Level::W, T>::kFactor;
    s.products[i] = dot<Level::W, T>(grads.row(i), outs.row(i), shape.width);
  }
}

// The weights and the gradients of the scores of one query and 2W keys.
template <int W>
struct Slopes {
  Pair<W> weights, grad_scores;
};

// `seen`: how many of these keys the query sees, as a float; others get zero.
template <int W, class T>
BLIP_FAST_INLINE Slopes<W> slopes_of(const float* scores, const float* slopes, const float& scale,
                                     const float& logsumexp, const float& product,
                                     const float& seen) {
  f32<W> lane;
  for (int i = 0; i < W; ++i) lane[i] = static_cast<float>(i);
  const f32<W> by = broadcast<W>(&scale), base = broadcast<W>(&logsumexp);
  const f32<W> mean = broadcast<W>(&product), end = broadcast<W>(&seen);
  const Pair<W> s = load_pair<W>(scores), g = load_pair<W>(slopes);
  f32<W> a = SoftmaxExp<W, T>::of(s.a * by - base), b = SoftmaxExp<W, T>::of(s.b * by - base);
  a = lane < end ? a : f32<W>{};
  b = lane + static_cast<float>(W) < end ? b : f32<W>{};
  return {{a, b}, {a * (g.a - mean), b * (g.b - mean)}};
}

// d of each query out of its one block of keys, where G * out would round otherwise: with few keys
// G V^T - d is a small difference, and with one key it is zero.
template <class Level, class T>
BLIP_FAST_INLINE void sum_products(const AttentionShape& shape, const AttentionTask& t,
                                   int64_t from, int64_t count, int64_t columns,
                                   Scratch<Level>& s) {
  constexpr int W = Level::W;
  const float scale = SoftmaxExp<W, T>::kFactor / std::sqrt(static_cast<float>(shape.width));
  const float none = 0.0f;
  for (int64_t q = 0; q < count; ++q) {
    f32<W> sum{};
    for (int64_t i = 0; i < columns; i += 2 * W) {
      const float seen = static_cast<float>(shape.seen(t, from + q) - i);
      const Slopes<W> v = slopes_of<W, T>(s.scores + q * kBlock + i, s.slopes + q * kBlock + i,
                                          scale, s.logsumexp[q], none, seen);
      sum += v.grad_scores.a + v.grad_scores.b;
    }
    s.products[q] = reduce_add<W>(sum);
  }
}

// Fills weights and grad_scores of a tile of `count` queries (and one of zeros, if it is odd).
template <class Level, class T>
BLIP_FAST_INLINE void differentiate(const AttentionShape& shape, const AttentionTask& t,
                                    int64_t from, int64_t count, int64_t key, int64_t columns,
                                    Scratch<Level>& s) {
  constexpr int W = Level::W;
  constexpr int64_t kDepth = Level::kDepth;
  const float scale = SoftmaxExp<W, T>::kFactor / std::sqrt(static_cast<float>(shape.width));
  for (int64_t r = 0; r < count; r += kDepth) {
    for (int64_t i = 0; i < columns; i += 2 * W) {
      Slopes<W> rows[kDepth];
      for (int64_t h = 0; h < kDepth; ++h) {
        const int64_t q = std::min(r + h, count - 1);
        const int64_t seen = r + h < count ? shape.seen(t, from + q) - key - i : 0;
        rows[h] = slopes_of<W, T>(s.scores + q * kBlock + i, s.slopes + q * kBlock + i, scale,
                                  s.logsumexp[q], s.products[q], static_cast<float>(seen));
      }
      auto* const weights = s.weights + r / kDepth * kBlock + i;
      auto* const across = s.grad_scores + r / kDepth * kBlock + i;
      if constexpr (kDepth == 1) {
        store_pair<W>(weights, rows[0].weights);
        store_pair<W>(across, rows[0].grad_scores);
      } else {
        const auto store = [](auto* to, const auto& bits) __attribute__((always_inline)) {
          std::memcpy(to, &bits, sizeof bits);
        };
        const Slopes<W>&x = rows[0], &y = rows[1];
        store(weights, Level::narrow_across(x.weights.a, y.weights.a));
        store(weights + W, Level::narrow_across(x.weights.b, y.weights.b));
        store(across, Level::narrow_across(x.grad_scores.a, y.grad_scores.a));
        store(across + W, Level::narrow_across(x.grad_scores.b, y.grad_scores.b));
        auto* const along = s.grad_score_rows + (r * kBlock + i) / 2;
        store(along, Level::narrow_in_order(x.grad_scores.a, x.grad_scores.b));
        store(along + kBlock / 2, Level::narrow_in_order(y.grad_scores.a, y.grad_scores.b));
      }
    }
  }
}

// One tile: `count` queries from `from`, the block of keys from `key`.
template <class Level, class T>
BLIP_FAST_INLINE void add_tile(const Job<T>& job, const AttentionTask& t, int64_t from,
                               int64_t count, int64_t key, int64_t keys, Scratch<Level>& s) {
  constexpr int W = Level::W;
  constexpr int64_t kDepth = Level::kDepth, kRow = kBlock / kDepth;
  constexpr int64_t kAcross = Scratch<Level>::kAcross;
  const int64_t width = job.shape.width;
  const int64_t columns = std::min(kBlock, round_up(keys - key, 2 * W)), vectors = columns / W;
  Level::template multiply<false>({s.queries, s.units, s.keys + key * s.units, kBlock, s.scores,
                                   kBlock, count, vectors, s.units});
  Level::template multiply<false>({s.grads, s.units, s.values + key * s.units, kBlock, s.slopes,
                                   kBlock, count, vectors, s.units});
  if (t.length <= kBlock) sum_products<Level, T>(job.shape, t, from, count, columns, s);
  differentiate<Level, T>(job.shape, t, from, count, key, columns, s);
  const int64_t depth = round_up(count, kDepth) / kDepth;
  Level::template multiply<true>({s.grads_across, kAcross, s.weights, kBlock,
                                  s.grad_values + key * width, kBlock, width, vectors, depth});
  Level::template multiply<true>({s.queries_across, kAcross, s.grad_scores, kBlock,
                                  s.grad_keys + key * width, kBlock, width, vectors, depth});
  const auto* const rows = kDepth == 1 ? s.grad_scores : s.grad_score_rows;
  const int64_t seen = round_up(std::min(kBlock, keys - key), kDepth) / kDepth;
  Level::template multiply<true>({rows, kRow, s.key_rows + key / kDepth * s.lanes, s.lanes,
                                  s.grad_queries, s.lanes, count, s.lanes / W, seen});
}

template <class Level, class T>
BLIP_FAST_INLINE void write_queries(const AttentionShape& shape, const Rows<T>& to, float scale,
                                    const float* sums, int64_t stride) {
  constexpr int W = Level::W;
  const f32<W> by = broadcast<W>(&scale);
  for (int64_t r = 0; r < to.count; ++r, sums += stride) {
    for (int64_t i = 0; i < shape.width; i += 2 * W) {
      const Pair<W> v = load_pair<W>(sums + i);
      store_bits<W, T>(const_cast<T*>(to.row(r)) + i, Storage<W, T>::narrow({v.a * by, v.b * by}),
                       std::min<int64_t>(2 * W, shape.width - i));
    }
  }
}

// `sums` is [block, D, key of the block].
template <class Level, class T>
BLIP_FAST_INLINE void write_keys(const Rows<T>& to, float scale, const float* sums) {
  int64_t r = 0;
#if defined(__x86_64__)
  if constexpr (Level::W == 16) {  // 16 keys and 16 elements at a time, turned in registers
    const f32<16> by = broadcast<16>(&scale);
    alignas(64) uint32_t turned[16 * 16];
    for (; r + 16 <= to.count && to.width % 16 == 0; r += 16) {
      const float* const lanes = sums + r / kBlock * kBlock * to.width + r % kBlock;
      for (int64_t i = 0; i < to.width; i += 16) {
        const auto lane = [&](int d) __attribute__((always_inline)) {
          return lanes + (i + d) * kBlock;
        };
        transpose_16x16(lane, turned, 16);
        for (int64_t key = 0; key < 16; ++key) {
          const f32<16> v = load_vector<f32<16>>(turned + key * 16);
          store_row<16>(const_cast<T*>(to.row(r + key)) + i, v * by, 16);
        }
      }
    }
  }
#endif
  for (; r < to.count; ++r) {
    const float* const lane = sums + r / kBlock * kBlock * to.width + r % kBlock;
    T* const row = const_cast<T*>(to.row(r));
    for (int64_t i = 0; i < to.width; ++i) row[i] = static_cast<T>(lane[i * kBlock] * scale);
  }
}

template <class Level, class T>
BLIP_FAST_INLINE void differentiate_tasks(const Job<T>& job, int64_t begin, int64_t end) {
  const AttentionShape& shape = job.shape;
  const float scale = 1.0f / std::sqrt(static_cast<float>(shape.width));
  Scratch<Level> s(shape.longest, shape.width);
  for (int64_t i = begin; i < end; ++i) {
    const AttentionTask& t = job.tasks[i];
    pack_sequence<Level, T>(job, t, s);
    for (int64_t from = 0; from < t.length; from += kQueries) {
      const int64_t count = std::min(kQueries, t.length - from);
      const int64_t keys = shape.seen(t, from + count - 1);
      pack_queries<Level, T>(job, t, from, count, s);
      std::fill_n(s.grad_queries, count * s.lanes, 0.0f);
      for (int64_t key = 0; key < keys; key += kBlock) {
        add_tile<Level, T>(job, t, from, count, key, keys, s);
      }
      write_queries<Level, T>(shape, shape.rows<T>(job.grad_qkv, 0, t, from, count), scale,
                              s.grad_queries, s.lanes);
    }
    write_keys<Level, T>(shape.rows<T>(job.grad_qkv, 1, t, 0, t.length), scale, s.grad_keys);
    write_keys<Level, T>(shape.rows<T>(job.grad_qkv, 2, t, 0, t.length), 1.0f, s.grad_values);
  }
}

// One copy for each instruction set.
template <class T>
void differentiate_portable(const Job<T>& job, int64_t begin, int64_t end) {
  differentiate_tasks<PortableLevel, T>(job, begin, end);
}

#if defined(__x86_64__)
template <class T>
BLIP_FAST_TARGET_AVX2 void differentiate_avx2(const Job<T>& job, int64_t begin, int64_t end) {
  differentiate_tasks<Avx2Level, T>(job, begin, end);
}

template <class T>
BLIP_FAST_TARGET_AVX512 void differentiate_avx512(const Job<T>& job, int64_t begin, int64_t end) {
  differentiate_tasks<Avx512Level, T>(job, begin, end);
}

BLIP_FAST_TARGET_AVX512BF16 void differentiate_avx512bf16(const Job<BFloat16>& job, int64_t begin,
                                                          int64_t end) {
  differentiate_tasks<Avx512Bf16Level, BFloat16>(job, begin, end);
}
#endif

template <class T>
auto pick_differentiate() {
#if defined(__x86_64__)
  const Isa isa = current_isa();
  if constexpr (std::is_same_v<T, BFloat16>) {
    if (isa >= Isa::avx512bf16) return &differentiate_avx512bf16;
  }
  if (isa >= Isa::avx512) return &differentiate_avx512<T>;
  if (isa == Isa::avx2) return &differentiate_avx2<T>;
#endif
  return &differentiate_portable<T>;
}

template <class T>
void run(const AttentionShape& shape, const Tensor& grad, const Tensor& qkv, const Tensor& out,
         const Tensor& logsumexp, const Tensor& grad_qkv) {
  // A sequence and head is one task: its gradients of keys and values are sums over all queries.
  const auto tasks = attention_tasks(shape, std::max<int64_t>(1, shape.longest));
  const Job<T> job{shape,
                   tasks,
                   static_cast<const T*>(grad.const_data_ptr()),
                   static_cast<const T*>(qkv.const_data_ptr()),
                   static_cast<const T*>(out.const_data_ptr()),
                   static_cast<const float*>(logsumexp.const_data_ptr()),
                   static_cast<T*>(grad_qkv.mutable_data_ptr())};
  const auto differentiate_range = pick_differentiate<T>();
  run_tasks(tasks, kGrain,
            [&](int64_t begin, int64_t end) { differentiate_range(job, begin, end); });
}

// The gradient of qkv, from that of the output.
Tensor attention_backward(const Tensor& grad, const Tensor& qkv, const Tensor& out,
                          const Tensor& logsumexp, const std::optional<Tensor>& offsets,
                          int64_t max_length, bool causal) {
  const AttentionShape shape = attention_shape(qkv, offsets, max_length, causal);
  check_contiguous(grad, "grad");
  check_contiguous(out, "out");
  check_contiguous(logsumexp, "logsumexp");
  check_dtype(grad, qkv.scalar_type(), "grad");
  check_dtype(out, qkv.scalar_type(), "out");
  check_dtype(logsumexp, ScalarType::Float, "logsumexp");
  check_same_shape(grad, out, "grad", "out");
  STD_TORCH_CHECK(out.numel() * 3 == qkv.numel() && logsumexp.numel() * shape.width == out.numel(),
                  "out has ", out.numel(), " elements and logsumexp ", logsumexp.numel(),
                  "; they must be the results for qkv, which has ", qkv.numel());
  Tensor grad_qkv = torch::stable::empty_like(qkv);
  const bool empty = qkv.numel() == 0;
  switch (qkv.scalar_type()) {
    case ScalarType::Float:
      if (!empty) run<float>(shape, grad, qkv, out, logsumexp, grad_qkv);
      break;
    case ScalarType::BFloat16:
      if (!empty) run<BFloat16>(shape, grad, qkv, out, logsumexp, grad_qkv);
      break;
    default:
      STD_TORCH_CHECK(false, "qkv is ", toString(qkv.scalar_type()),
                      ", expected float32 or bfloat16; pass qkv.float()");
  }
  return grad_qkv;
}

}  // namespace
}  // namespace blip_fast

STABLE_TORCH_LIBRARY_IMPL(blip_fast, CPU, m) {
  m.impl("attention_backward.native", TORCH_BOX(&blip_fast::attention_backward));
}

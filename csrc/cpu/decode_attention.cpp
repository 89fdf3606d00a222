// Attention of one query a sequence: to the memory it points at, and to its own past.
//
// Both are bound by memory bandwidth. Sequences of one memory are rows of one attention, so the
// memory is read once for all of them; the past is followed through the table of ancestors.

#include <algorithm>
#include <cmath>
#include <optional>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <blip_fast/check.h>
#include <blip_fast/isa.h>
#include <blip_fast/memory_rows.h>
#include <blip_fast/panels.h>

namespace blip_fast {
namespace {

Tensor decode_cross_attention(const Tensor& q, const Tensor& memory, const Tensor& index,
                              const std::optional<Tensor>& key_lengths) {
  const Memory view = memory_of(memory, q, "memory");
  const int64_t* const memory_of_row = check_index(index, q.size(0), view.count);
  const MemoryRows rows =
      group_rows(view.count, q.size(0), [&](int64_t row) { return memory_of_row[row]; });
  Tensor out = torch::stable::empty_like(q);
  attend_to_memory({q.const_data_ptr(), view, check_key_lengths(key_lengths, view), &rows,
                    out.mutable_data_ptr(), nullptr},
                   q.scalar_type());
  return out;
}

struct Job {
  const void* q;  // [B, H, D]
  Memory cache;   // [R, P, 2, H, D]
  const int64_t *ancestors, *lengths;
  void* out;  // as q
};

// Keys that the next rows are prefetched ahead of: they lie anywhere, so the hardware cannot.
constexpr int64_t kAhead = 8;

// One head of one sequence: all scores into `scores` [P], exact maximum, then the values.
template <int W, class T>
BLIP_FAST_INLINE void attend_head(const Job& job, int64_t b, int64_t head, float* scores) {
  const int64_t width = job.cache.width, step = job.cache.token_stride;
  const int64_t* const rows = job.ancestors + b * job.cache.tokens;
  const int64_t length = job.lengths[b];
  const int64_t place = (b * job.cache.heads + head) * width;
  Pair<W> q[kMaxWidth / (2 * W)];
  Pair<W> sum[kMaxWidth / (2 * W)]{};
  const auto pieces = [&](auto body) __attribute__((always_inline)) {
    for (int64_t i = 0; i < width; i += 2 * W) {
      body(i, std::min<int64_t>(2 * W, width - i), i / (2 * W));
    }
  };
  pieces([&](int64_t i, int64_t count, int64_t piece) __attribute__((always_inline)) {
    q[piece] = Storage<W, T>::widen(load_bits<W>(static_cast<const T*>(job.q) + place + i, count));
  });
  const float scale = 1.0f / std::sqrt(static_cast<float>(width));
  float top = -__builtin_inff();
  for (int64_t p = 0; p < length; ++p) {
    const T* const key = job.cache.keys<T>(rows[p], head) + p * step;
    const int64_t later = std::min(p + kAhead, length - 1);
    const T* const next = job.cache.keys<T>(rows[later], head) + later * step;
    f32<W> dot{};
    pieces([&](int64_t i, int64_t count, int64_t piece) __attribute__((always_inline)) {
      __builtin_prefetch(next + i);
      __builtin_prefetch(next + job.cache.heads * width + i);
      const Pair<W> k = Storage<W, T>::widen(load_bits<W>(key + i, count));
      dot = dot + k.a * q[piece].a;
      dot = dot + k.b * q[piece].b;
    });
    scores[p] = reduce_add<W>(dot) * scale;
    top = scores[p] > top ? scores[p] : top;
  }
  float total = 0;
  for (int64_t p = 0; p < length; ++p) {
    const float weight = std::exp(scores[p] - top);
    const T* const value = job.cache.values<T>(rows[p], head) + p * step;
    total += weight;
    pieces([&](int64_t i, int64_t count, int64_t piece) __attribute__((always_inline)) {
      const Pair<W> v = Storage<W, T>::widen(load_bits<W>(value + i, count));
      sum[piece].a += v.a * weight;
      sum[piece].b += v.b * weight;
    });
  }
  const float factor = length > 0 ? 1.0f / total : 0.0f;
  pieces([&](int64_t i, int64_t count, int64_t piece) __attribute__((always_inline)) {
    const Pair<W> v{sum[piece].a * factor, sum[piece].b * factor};
    store_bits<W, T>(static_cast<T*>(job.out) + place + i, Storage<W, T>::narrow(v), count);
  });
}

// Units are heads of sequences, b * heads + head. One copy for each instruction set.
template <int W, class T>
BLIP_FAST_INLINE void run_heads(const Job& job, int64_t first, int64_t last) {
  std::vector<float> scores(job.cache.tokens);
  for (int64_t unit = first; unit < last; ++unit) {
    attend_head<W, T>(job, unit / job.cache.heads, unit % job.cache.heads, scores.data());
  }
}

template <class T>
void heads_portable(const Job& job, int64_t first, int64_t last) {
  run_heads<4, T>(job, first, last);
}

#if defined(__x86_64__)
template <class T>
BLIP_FAST_TARGET_AVX2 void heads_avx2(const Job& job, int64_t first, int64_t last) {
  run_heads<8, T>(job, first, last);
}
template <class T>
BLIP_FAST_TARGET_AVX512 void heads_avx512(const Job& job, int64_t first, int64_t last) {
  run_heads<16, T>(job, first, last);
}
#endif

template <class T>
auto pick_heads() {
#if defined(__x86_64__)
  if (current_isa() >= Isa::avx512) return &heads_avx512<T>;
  if (current_isa() == Isa::avx2) return &heads_avx2<T>;
#endif
  return &heads_portable<T>;
}

// A thread gets at least this many elements of keys, or waking it costs more.
constexpr int64_t kGrain = 1 << 18;

const int64_t* check_table(const Tensor& ancestors, const int64_t* lengths, int64_t sequences,
                           const Memory& cache) {
  STD_TORCH_CHECK(ancestors.dim() == 2 && ancestors.size(0) == sequences &&
                      ancestors.size(1) == cache.tokens,
                  "ancestors must be [", sequences, ", ", cache.tokens, "]");
  check_contiguous(ancestors, "ancestors");
  check_dtype(ancestors, ScalarType::Long, "ancestors");
  const auto* const rows = static_cast<const int64_t*>(ancestors.const_data_ptr());
  for (int64_t b = 0; b < sequences; ++b) {
    STD_TORCH_CHECK(lengths[b] >= 0 && lengths[b] <= cache.tokens, "lengths[", b, "] is ",
                    lengths[b], ", but the cache has ", cache.tokens, " positions");
    for (int64_t p = 0; p < lengths[b]; ++p) {
      const int64_t row = rows[b * cache.tokens + p];
      STD_TORCH_CHECK(row >= 0 && row < cache.count, "ancestors[", b, ", ", p, "] is ", row,
                      ", but the cache has ", cache.count, " rows");
    }
  }
  return rows;
}

Tensor decode_attention(const Tensor& q, const Tensor& cache, const Tensor& ancestors,
                        const Tensor& lengths) {
  const Memory view = memory_of(cache, q, "cache");
  check_vector(lengths, q.size(0), "lengths");
  check_contiguous(lengths, "lengths");
  check_dtype(lengths, ScalarType::Long, "lengths");
  const auto* const counts = static_cast<const int64_t*>(lengths.const_data_ptr());
  const int64_t* const rows = check_table(ancestors, counts, q.size(0), view);
  Tensor out = torch::stable::empty_like(q);
  const Job job{q.const_data_ptr(), view, rows, counts, out.mutable_data_ptr()};
  const int64_t longest =
      q.size(0) > 0 ? std::max<int64_t>(1, *std::max_element(counts, counts + q.size(0))) : 1;
  const int64_t grain = std::max<int64_t>(1, kGrain / (longest * view.width));
  switch (q.scalar_type()) {
    case ScalarType::Float: {
      const auto run = pick_heads<float>();
      torch::stable::parallel_for(0, q.size(0) * view.heads, grain,
                                  [&](int64_t first, int64_t last) { run(job, first, last); });
      break;
    }
    case ScalarType::BFloat16: {
      const auto run = pick_heads<BFloat16>();
      torch::stable::parallel_for(0, q.size(0) * view.heads, grain,
                                  [&](int64_t first, int64_t last) { run(job, first, last); });
      break;
    }
    default:
      STD_TORCH_CHECK(false, "q is ", toString(q.scalar_type()),
                      ", expected float32 or bfloat16; pass q.float()");
  }
  return out;
}

}  // namespace
}  // namespace blip_fast

STABLE_TORCH_LIBRARY_IMPL(blip_fast, CPU, m) {
  m.impl("decode_attention.native", TORCH_BOX(&blip_fast::decode_attention));
  m.impl("decode_cross_attention.native", TORCH_BOX(&blip_fast::decode_cross_attention));
}

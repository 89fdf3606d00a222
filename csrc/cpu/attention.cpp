// Self-attention, forward: which code runs on which part of the work.

#include <tuple>

#include <torch/csrc/stable/library.h>

#include <blip_fast/attend.h>
#include <blip_fast/attend_tiles.h>

namespace blip_fast {
namespace {

// Products of a query and a key that are worth a thread of their own.
constexpr int64_t kGrain = 4096;

template <class T>
using Job = AttentionJob<T>;

template <class Level, class T>
BLIP_FAST_INLINE void attend_tasks(const Job<T>& job, int64_t begin, int64_t end) {
  const AttentionShape& shape = job.shape;
  Scratch<Level> scratch(shape.longest, shape.width);
  const AttentionTask* packed = nullptr;
  for (int64_t i = begin; i < end; ++i) {
    const AttentionTask& task = job.tasks[i];
    if (packed == nullptr || packed->first != task.first || packed->head != task.head) {
      pack_task<Level>(job, task, scratch);
      packed = &task;
    }
    for (int64_t from = task.from; from < task.to; from += kQueries) {
      attend<Level, T>(job, task, scratch, from, std::min(kQueries, task.to - from));
    }
  }
}

// As `attend_tasks`, on tiles. Their life ends with the task of the pool.
template <class Level, class Tiles>
BLIP_FAST_INLINE void attend_tasks_on_tiles(const Job<BFloat16>& job, int64_t begin, int64_t end) {
  Scratch<Level> scratch(job.shape.longest, job.shape.width);
  Rings rings;
  Tiles tiles(kWholeTiles);
  const AttentionTask* packed = nullptr;
  for (int64_t i = begin; i < end; ++i) {
    const AttentionTask& task = job.tasks[i];
    if (packed == nullptr || packed->first != task.first || packed->head != task.head) {
      pack_task_for_tiles<Level>(job, task, scratch);
      packed = &task;
    }
    for (int64_t from = task.from; from < task.to; from += kTileRows) {
      attend_on_tiles<Level>(job, task, scratch, rings, tiles, from,
                             std::min(kTileRows, task.to - from));
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

BLIP_FAST_TARGET_AVX512BF16 void attend_amx(const Job<BFloat16>& job, int64_t begin, int64_t end) {
  attend_tasks_on_tiles<Avx512Bf16Level, AmxTiles>(job, begin, end);
}

BLIP_FAST_TARGET_AVX512BF16 void attend_amx_emulated(const Job<BFloat16>& job, int64_t begin,
                                                     int64_t end) {
  attend_tasks_on_tiles<Avx512Bf16Level, EmulatedTiles>(job, begin, end);
}
#endif

void attend_amx_portable(const Job<BFloat16>& job, int64_t begin, int64_t end) {
  attend_tasks_on_tiles<PortablePairLevel, EmulatedTiles>(job, begin, end);
}

using AttendTiles = void (*)(const Job<BFloat16>&, int64_t, int64_t);

// Null where there are none, or where heads have another width than theirs.
AttendTiles pick_attend_on_tiles(int64_t width) {
  if (current_tiles() == Tiles::none || width != kTiledWidth) return nullptr;
#if defined(__x86_64__)
  if (current_tiles() == Tiles::amx) return &attend_amx;
  if (current_isa() == Isa::avx512bf16) return &attend_amx_emulated;
#endif
  return &attend_amx_portable;
}

template <class T>
auto pick_attend(int64_t width) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    if (const AttendTiles tiled = pick_attend_on_tiles(width)) return tiled;
  }
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
  const auto attend_range = pick_attend<T>(shape.width);
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

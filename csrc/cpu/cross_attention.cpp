// Attention of rows of queries to memories that they share: texts to their image, beams to theirs.
//
// A unit of work is one memory, some of its heads and some of the rows that point at it. It passes
// over the memory once, in blocks of keys: the block of a head is laid out as two operands, and all
// rows of the unit are multiplied with them under a running maximum. A unit of few rows (decoding)
// takes several heads, so that it reads long runs of memory; its next block is prefetched.

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <blip_fast/cell_tiles.h>
#include <blip_fast/check.h>
#include <blip_fast/isa.h>
#include <blip_fast/memory_rows.h>
#include <blip_fast/panels.h>

namespace blip_fast {
namespace {

constexpr int64_t kKeys = 64;   // in a block
// Rows that are multiplied at a time: with both operands they fit the L1 cache.
template <class Level>
constexpr int64_t kRows = 12;
template <class Cells, class Tiles>
constexpr int64_t kRows<TileLevel<Cells, Tiles>> = kTileRows;
constexpr int64_t kMostRows = kTileRows;
constexpr int64_t kUnitRows = 384;  // rows times heads of a unit: their states fit the L2 cache
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Unit {
  int64_t memory;
  int64_t head, heads;
  const int64_t* rows;
  int64_t count;
};

// Where a unit keeps its operands and its states: for each head and row an output of `width`
// floats, the sums of its weights by lanes, and its largest score.
template <class Cells>
struct Space {
  static constexpr int W = Cells::kWidth;
  int64_t width, depth, state;
  uint32_t *q, *keys, *values, *weights;
  float *scores, *states, *tops;

  Space(int64_t head_width, int64_t unit_rows, Workspace& from)
      : width(padded<Cells>(head_width)),
        depth(width / Cells::kDepth),
        state(width + W),
        q(from.cells(unit_rows * depth)),
        keys(from.cells(depth * kKeys)),
        values(from.cells(kKeys / Cells::kDepth * width)),
        weights(from.cells(kMostRows * kKeys)),
        scores(from.floats(kMostRows * kKeys)),
        states(from.floats(unit_rows * state)),
        tops(from.floats(unit_rows)) {}
};

// For any instruction set: the padding of `Space` is at most that of the widest vectors.
int64_t workspace_cells(int64_t head_width, int64_t unit_rows) {
  const int64_t width = round_up(head_width, 32);
  return Workspace::rounded(unit_rows * (2 * width + 16 + 1)) + 2 * kKeys * width +
         2 * kMostRows * kKeys + 64;
}

// Turns a row of scores into cells of weights 2^((score - top) * scale); raises the row's top and
// scales its state down where a score is above it.
template <class Cells>
BLIP_FAST_INLINE void weigh(const float* scores, int64_t lanes, float scale, float& top,
                            float* state, int64_t width, uint32_t* weights) {
  constexpr int W = Cells::kWidth;
  f32<W> largest = load_vector<f32<W>>(scores);
  for (int64_t i = W; i < lanes; i += W) {
    largest = larger<W>(load_vector<f32<W>>(scores + i), largest);
  }
  const float block_top = reduce_max<W>(largest);
  if (block_top > top) {
    if (top != -kInfinity) {
      const float factor = std::exp2((top - block_top) * scale);
      for (int64_t i = 0; i < width + W; i += W) {
        const f32<W> scaled = load_vector<f32<W>>(state + i) * factor;
        std::memcpy(state + i, &scaled, sizeof scaled);
      }
    }
    top = block_top;
  }
  f32<W> sum = load_vector<f32<W>>(state + width);
  for (int64_t i = 0; i < lanes; i += 2 * W) {
    const f32<W> a = Cells::exp2((load_vector<f32<W>>(scores + i) - top) * scale);
    const f32<W> b = Cells::exp2((load_vector<f32<W>>(scores + i + W) - top) * scale);
    Cells::store_row(weights, a, b);
    sum = Cells::add_row(sum, weights);  // what is divided by is what was multiplied with
    weights += 2 * W / Cells::kDepth;
  }
  std::memcpy(state + width, &sum, sizeof sum);
}

// A head's block of `count` keys, laid out in `space`, against `rows` queries from row `first` on.
template <class Level>
BLIP_FAST_INLINE void attend_block(Level& level, const Space<typename Level::Cells>& space,
                                   int64_t first, int64_t rows, int64_t count, float scale) {
  using Cells = typename Level::Cells;
  const int64_t lanes = round_up(count, 2 * Cells::kWidth);
  const int64_t stride = kKeys / Cells::kDepth;
  float* const states = space.states + first * space.state;
  level.multiply({space.q + first * space.depth, space.depth, 1, space.keys, kKeys, space.scores,
                  kKeys, rows, lanes, space.depth, false});
  for (int64_t r = 0; r < rows; ++r) {
    float* const scores = space.scores + r * kKeys;
    std::fill(scores + count, scores + lanes, -kInfinity);
    weigh<Cells>(scores, lanes, scale, space.tops[first + r], states + r * space.state,
                 space.width, space.weights + r * stride);
  }
  level.multiply({space.weights, stride, 1, space.values, space.width, states, space.state,
                  rows, space.width, lanes / Cells::kDepth, true});
}

template <class Cells>
BLIP_FAST_INLINE void begin(const MemoryAttention& job, const Unit& unit,
                            const Space<Cells>& space) {
  using T = typename Cells::Element;
  const int64_t width = job.memory.width, heads = job.memory.heads;
  for (int64_t h = 0; h < unit.heads; ++h) {
    for (int64_t r = 0; r < unit.count; ++r) {
      const T* const q =
          static_cast<const T*>(job.q) + (unit.rows[r] * heads + unit.head + h) * width;
      cells_of_row<Cells>(q, width, space.q + (h * unit.count + r) * space.depth);
    }
  }
  std::fill_n(space.states, unit.heads * unit.count * space.state, 0.0f);
  std::fill_n(space.tops, unit.heads * unit.count, -kInfinity);
}

template <class Cells>
BLIP_FAST_INLINE void finish(const MemoryAttention& job, const Unit& unit,
                             const Space<Cells>& space, float scale) {
  constexpr int W = Cells::kWidth;
  using T = typename Cells::Element;
  for (int64_t h = 0; h < unit.heads; ++h) {
    for (int64_t r = 0; r < unit.count; ++r) {
      const int64_t row = h * unit.count + r;
      const int64_t place = unit.rows[r] * job.memory.heads + unit.head + h;
      const float* const state = space.states + row * space.state;
      const float sum = reduce_add<W>(load_vector<f32<W>>(state + space.width));
      write_row<Cells>(state, sum == 0.0f ? 0.0f : 1.0f / sum,
                       static_cast<T*>(job.out) + place * job.memory.width, job.memory.width);
      if (job.logsumexp != nullptr) {
        job.logsumexp[place] = (space.tops[row] * scale + std::log2(sum)) * kLn2;
      }
    }
  }
}

template <class Level>
BLIP_FAST_INLINE void run_unit(const MemoryAttention& job, const Unit& unit, Workspace& from) {
  using Cells = typename Level::Cells;
  using T = typename Cells::Element;
  const Memory& memory = job.memory;
  const Space<Cells> space(memory.width, unit.heads * unit.count, from);
  const int64_t keys = job.key_lengths != nullptr ? job.key_lengths[unit.memory] : memory.tokens;
  const int64_t stride = memory.token_stride;
  const float scale = kLog2E / std::sqrt(static_cast<float>(memory.width));
  begin<Cells>(job, unit, space);
  Level level;
  for (int64_t key = 0; key < keys; key += kKeys) {
    const int64_t count = std::min(kKeys, keys - key);
    const int64_t ahead = key + kKeys < keys ? kKeys * stride : 0;
    for (int64_t h = 0; h < unit.heads; ++h) {
      const T* const k = memory.keys<T>(unit.memory, unit.head + h) + key * stride;
      const T* const v = memory.values<T>(unit.memory, unit.head + h) + key * stride;
      rows_as_lanes<Cells>({k, stride, count, memory.width, ahead}, space.keys, kKeys);
      rows_as_depth<Cells>({v, stride, count, memory.width, ahead}, space.values, space.width);
      for (int64_t r = 0; r < unit.count; r += kRows<Level>) {
        attend_block(level, space, h * unit.count + r, std::min(kRows<Level>, unit.count - r),
                     count, scale);
      }
    }
  }
  finish<Cells>(job, unit, space, scale);
}

// One copy of a unit's code for each instruction set.
template <class T>
void unit_portable(const MemoryAttention& job, const Unit& unit, Workspace& from) {
  run_unit<PortableLevel<T>>(job, unit, from);
}

#if defined(__x86_64__)
template <class T>
BLIP_FAST_TARGET_AVX2 void unit_avx2(const MemoryAttention& job, const Unit& unit,
                                     Workspace& from) {
  run_unit<Avx2Level<T>>(job, unit, from);
}
template <class T>
BLIP_FAST_TARGET_AVX512 void unit_avx512(const MemoryAttention& job, const Unit& unit,
                                         Workspace& from) {
  run_unit<Avx512Level<T>>(job, unit, from);
}
BLIP_FAST_TARGET_AVX512BF16 void unit_avx512bf16(const MemoryAttention& job, const Unit& unit,
                                                 Workspace& from) {
  run_unit<Avx512Bf16Level>(job, unit, from);
}
BLIP_FAST_TARGET_AVX512BF16 void unit_amx(const MemoryAttention& job, const Unit& unit,
                                          Workspace& from) {
  run_unit<TileLevel<PairCells, AmxTiles>>(job, unit, from);
}
BLIP_FAST_TARGET_AVX512BF16 void unit_amx_emulated(const MemoryAttention& job, const Unit& unit,
                                                   Workspace& from) {
  run_unit<TileLevel<PairCells, EmulatedTiles>>(job, unit, from);
}
#endif

void unit_amx_portable(const MemoryAttention& job, const Unit& unit, Workspace& from) {
  run_unit<TileLevel<PlainPairCells, EmulatedTiles>>(job, unit, from);
}

using RunUnit = void (*)(const MemoryAttention&, const Unit&, Workspace&);

template <class T>
RunUnit pick_unit() {
  constexpr bool kPairs = std::is_same_v<T, BFloat16>;
  const auto [name, isa, tiles] = current_level();
#if defined(__x86_64__)
  if (kPairs && tiles == Tiles::amx) return &unit_amx;
  if (kPairs && isa == Isa::avx512bf16) {
    return tiles == Tiles::none ? &unit_avx512bf16 : &unit_amx_emulated;
  }
  if (isa >= Isa::avx512) return &unit_avx512<T>;
  if (isa == Isa::avx2) return &unit_avx2<T>;
#endif
  if (kPairs && tiles == Tiles::emulated) return &unit_amx_portable;
  return &unit_portable<T>;
}

// Splits the work into units of at most kUnitRows rows times heads, two or more to a thread.
std::vector<Unit> split(const MemoryAttention& job) {
  const std::vector<int64_t>& first = job.rows->first;
  const int64_t heads = job.memory.heads;
  int64_t chunks = 0;
  for (int64_t m = 0; m < job.memory.count; ++m) {
    chunks += (first[m + 1] - first[m] + kUnitRows - 1) / kUnitRows;
  }
  const int64_t wanted = 2 * static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t parts = std::max<int64_t>(1, wanted / std::max<int64_t>(1, chunks));
  const int64_t fair = std::max<int64_t>(1, heads / parts);

  std::vector<Unit> units;
  for (int64_t m = 0; m < job.memory.count; ++m) {
    for (int64_t r = first[m]; r < first[m + 1]; r += kUnitRows) {
      const int64_t count = std::min(kUnitRows, first[m + 1] - r);
      const int64_t step = std::min(fair, std::max<int64_t>(1, kUnitRows / count));
      for (int64_t h = 0; h < heads; h += step) {
        units.push_back({m, h, std::min(step, heads - h), job.rows->rows.data() + r, count});
      }
    }
  }
  return units;
}

}  // namespace

void attend_to_memory(const MemoryAttention& job, ScalarType dtype) {
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16, "q is ",
                  toString(dtype), ", expected float32 or bfloat16; pass q.float()");
  const RunUnit run = dtype == ScalarType::Float ? pick_unit<float>() : pick_unit<BFloat16>();
  const std::vector<Unit> units = split(job);
  const Memory& memory = job.memory;
  const int64_t rows = static_cast<int64_t>(job.rows->rows.size());
  const int64_t work = 2 * rows * memory.tokens * memory.heads * memory.width;
  for_units(static_cast<int64_t>(units.size()), work, workspace_cells(memory.width, kUnitRows),
            [&](int64_t u, Workspace& from) { run(job, units[u], from); });
}

namespace {

std::tuple<Tensor, Tensor> cross_attention(const Tensor& q, const Tensor& memory,
                                           const Tensor& offsets, const Tensor& index,
                                           const std::optional<Tensor>& key_lengths) {
  const Memory view = memory_of(memory, q, "memory");
  const MemoryRows rows = rows_of_texts(q.size(0), offsets, index, view.count);
  Tensor out = torch::stable::empty_like(q);
  Tensor logsumexp = torch::stable::new_empty(q, {q.size(0), q.size(1)}, ScalarType::Float);
  attend_to_memory({q.const_data_ptr(), view, check_key_lengths(key_lengths, view), &rows,
                    out.mutable_data_ptr(), static_cast<float*>(logsumexp.mutable_data_ptr())},
                   q.scalar_type());
  return {out, logsumexp};
}

}  // namespace
}  // namespace blip_fast

STABLE_TORCH_LIBRARY_IMPL(blip_fast, CPU, m) {
  m.impl("cross_attention.native", TORCH_BOX(&blip_fast::cross_attention));
}

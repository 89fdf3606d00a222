// The gradient of attention to shared memories: summed into each memory once, in a fixed order.
//
// A unit of work is one head of one memory with all rows that point at it. Its rows are laid out
// once, in blocks; then, for each block of keys and each block of rows, keys are the rows of the
// products and queries their lanes:
//   S' = K Q'    P' = exp(S' - logsumexp)    dP' = V dO'    dS' = P' (dP' - sum(dO O)) / sqrt(D)
//   dV += P' dO    dK += dS' Q    dQ' += K' dS'
// so that logsumexp and sum are plain vectors and nothing of the size of the scores is transposed.

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <blip_fast/check.h>
#include <blip_fast/isa.h>
#include <blip_fast/memory_rows.h>
#include <blip_fast/panels.h>

namespace blip_fast {
namespace {

constexpr int64_t kKeys = 48;  // in a block, a multiple of the rows of a tile
constexpr int64_t kRows = 64;  // in a block
// The logarithm that makes the weights of lanes without a row zero.
constexpr float kNobody = 1e30f;

struct Job {
  const void *grad, *q, *out;  // [T, H, D]
  const float* logsumexp;      // [T, H]
  Memory memory;
  const int64_t* key_lengths;  // [M] or null
  const MemoryRows* rows;
  void *grad_q, *grad_memory;  // as q; [M, K, 2, H, D] without gaps
};

// The operands of one block of rows: queries and output gradients as lanes and as depth, and the
// gradient of the queries as it grows, [width][row].
struct RowBlock {
  uint32_t *q_lanes, *grad_lanes, *q_depth, *grad_depth;
  float *logs, *dots;  // logsumexp to the base 2, and sum(dO * O)
  float* grad_q;
};

template <class Cells>
struct Space {
  int64_t width, depth;
  uint32_t *keys, *values, *keys_depth;         // of the block: two as rows, one as depth
  float *scores, *weight_grads;                 // [key][row]
  uint32_t *weights, *score_grads, *score_panel;  // cells along the rows; along the keys
  float *grad_keys, *grad_values;               // [key][width]
  uint32_t *gathered, *out_lanes;               // rows side by side; outputs as lanes
  std::vector<RowBlock> blocks;

  Space(int64_t head_width, int64_t rows, Workspace& from)
      : width(padded<Cells>(head_width)),
        depth(width / Cells::kDepth),
        keys(from.cells(kKeys * depth)),
        values(from.cells(kKeys * depth)),
        keys_depth(from.cells(round_up(kKeys, 2 * Cells::kWidth) / Cells::kDepth * width)),
        scores(from.floats(kKeys * kRows)),
        weight_grads(from.floats(kKeys * kRows)),
        weights(from.cells(kKeys * kRows)),
        score_grads(from.cells(kKeys * kRows)),
        score_panel(Cells::kDepth == 1 ? score_grads : from.cells(kKeys * kRows)),
        grad_keys(from.floats(kKeys * width)),
        grad_values(from.floats(kKeys * width)),
        gathered(from.cells(kRows * width)),
        out_lanes(from.cells(kRows * depth)) {
    for (int64_t r = 0; r < rows; r += kRows) {
      const int64_t size = kRows * depth;
      blocks.push_back({from.cells(size), from.cells(size), from.cells(size), from.cells(size),
                        from.floats(kRows), from.floats(kRows), from.floats(width * kRows)});
    }
  }
};

// For any instruction set.
int64_t workspace_cells(int64_t head_width, int64_t rows) {
  const int64_t width = round_up(head_width, 32);
  const int64_t blocks = round_up(rows, kRows) / kRows;
  return 4 * kKeys * width + 64 * width + 5 * kKeys * kRows + 2 * kRows * width +
         blocks * (5 * kRows * width + 2 * kRows) + 64;
}

// Copies one head of `count` rows next to one another and lays them out as lanes, and as depth
// unless that is null.
template <class Cells>
BLIP_FAST_INLINE void lay_out(const void* from, const Job& job, int64_t head, const int64_t* rows,
                              int64_t count, const Space<Cells>& space, uint32_t* lanes,
                              uint32_t* depth) {
  using T = typename Cells::Element;
  const int64_t width = job.memory.width, heads = job.memory.heads;
  T* const gathered = reinterpret_cast<T*>(space.gathered);
  for (int64_t r = 0; r < count; ++r) {
    const T* const row = static_cast<const T*>(from) + (rows[r] * heads + head) * width;
    std::memcpy(gathered + r * width, row, width * sizeof(T));
  }
  rows_as_lanes<Cells>({gathered, width, count, width}, lanes, kRows);
  if (depth != nullptr) {
    rows_as_depth<Cells>({gathered, width, count, width}, depth, space.width);
  }
}

// sum(dO * O) of each row, in the order of the products: where a row has one key, it equals the
// gradient of its weight to the last bit, and the gradient of its score is zero.
template <class Cells>
BLIP_FAST_INLINE void add_dots(const RowBlock& block, const Space<Cells>& space, int64_t rows) {
  constexpr int W = Cells::kWidth;
  for (int64_t lane = 0; lane < round_up(rows, 2 * W); lane += W) {
    f32<W> total{};
    for (int64_t first = 0; first < space.depth; first += Cells::kChain) {
      f32<W> sum{};
      for (int64_t k = first; k < std::min(space.depth, first + Cells::kChain); ++k) {
        sum = Cells::madd(sum, load_vector<u32<W>>(block.grad_lanes + k * kRows + lane),
                          load_vector<u32<W>>(space.out_lanes + k * kRows + lane));
      }
      total = total + sum;
    }
    std::memcpy(block.dots + lane, &total, sizeof total);
  }
}

template <class Cells>
BLIP_FAST_INLINE void begin(const Job& job, int64_t head, const int64_t* rows, int64_t count,
                            const Space<Cells>& space) {
  for (int64_t first = 0; first < count; first += kRows) {
    const RowBlock& block = space.blocks[first / kRows];
    const int64_t size = std::min(kRows, count - first);
    lay_out<Cells>(job.out, job, head, rows + first, size, space, space.out_lanes, nullptr);
    lay_out<Cells>(job.q, job, head, rows + first, size, space, block.q_lanes, block.q_depth);
    lay_out<Cells>(job.grad, job, head, rows + first, size, space, block.grad_lanes,
                   block.grad_depth);
    add_dots<Cells>(block, space, size);
    std::fill_n(block.logs, kRows, kNobody);
    std::fill_n(block.grad_q, space.width * kRows, 0.0f);
    for (int64_t r = 0; r < size; ++r) {
      block.logs[r] = job.logsumexp[rows[first + r] * job.memory.heads + head] * kLog2E;
    }
  }
}

// From scores and gradients of weights to weights and gradients of scores, rounded to cells.
template <class Cells>
BLIP_FAST_INLINE void weigh(const Space<Cells>& space, const RowBlock& block, int64_t keys,
                            int64_t lanes, float root) {
  constexpr int W = Cells::kWidth;
  constexpr int64_t kStride = kRows / Cells::kDepth;
  const float scale = kLog2E * root;
  for (int64_t key = 0; key < keys; key += Cells::kDepth) {
    for (int64_t lane = 0; lane < lanes; lane += 2 * W) {
      f32<W> grads[2][Cells::kDepth];
      for (int d = 0; d < Cells::kDepth; ++d) {
        const int64_t at = (key + d) * kRows + lane;
        f32<W> weights[2];
        for (int half = 0; half < 2; ++half) {
          const int64_t i = half * W;
          weights[half] = Cells::exp2(load_vector<f32<W>>(space.scores + at + i) * scale -
                                      load_vector<f32<W>>(block.logs + lane + i));
          grads[half][d] = weights[half] * root *
                           (load_vector<f32<W>>(space.weight_grads + at + i) -
                            load_vector<f32<W>>(block.dots + lane + i));
        }
        const int64_t cell = (key + d) * kStride + lane / Cells::kDepth;
        Cells::store_row(space.weights + cell, weights[0], weights[1]);
        Cells::store_row(space.score_grads + cell, grads[0][d], grads[1][d]);
      }
      if constexpr (Cells::kDepth > 1) {
        uint32_t* const panel = space.score_panel + key / Cells::kDepth * kRows + lane;
        Cells::store_depth(panel, grads[0]);
        Cells::store_depth(panel + W, grads[1]);
      }
    }
  }
}

// `count` keys, laid out in `space`, against one block of `rows` rows.
template <class Level>
BLIP_FAST_INLINE void one_block(const Space<typename Level::Cells>& space, const RowBlock& block,
                                int64_t count, int64_t rows, float root) {
  using Cells = typename Level::Cells;
  const int64_t lanes = round_up(rows, 2 * Cells::kWidth);
  const int64_t keys = round_up(count, Cells::kDepth);
  const int64_t width = space.width, depth = space.depth;
  constexpr int64_t kStride = kRows / Cells::kDepth;
  Level::multiply({space.keys, depth, 1, block.q_lanes, kRows, space.scores, kRows, keys, lanes,
                   depth, false});
  Level::multiply({space.values, depth, 1, block.grad_lanes, kRows, space.weight_grads, kRows,
                   keys, lanes, depth, false});
  // A key that only fills a cell has no weight.
  for (int64_t key = count; key < keys; ++key) {
    std::fill_n(space.scores + key * kRows, lanes, -__builtin_inff());
  }
  weigh<Cells>(space, block, keys, lanes, root);
  const int64_t pairs = lanes / Cells::kDepth;
  Level::multiply({space.weights, kStride, 1, block.grad_depth, width, space.grad_values, width,
                   count, width, pairs, true});
  Level::multiply({space.score_grads, kStride, 1, block.q_depth, width, space.grad_keys, width,
                   count, width, pairs, true});
  Level::multiply({space.keys_depth, 1, width, space.score_panel, kRows, block.grad_q, kRows,
                   width, lanes, keys / Cells::kDepth, true});
}

// Lays out `count` <= kKeys keys and their values.
template <class Cells>
BLIP_FAST_INLINE void load_keys(const Memory& memory, const typename Cells::Element* keys,
                                int64_t count, const Space<Cells>& space) {
  using T = typename Cells::Element;
  const RowsOf<T> rows{keys, memory.token_stride, count, memory.width};
  for (int64_t key = 0; key < round_up(count, Cells::kDepth); ++key) {
    const T* const values = keys + memory.heads * memory.width + key * memory.token_stride;
    cells_of_row<Cells>(row_or_zeros(rows, key), memory.width, space.keys + key * space.depth);
    cells_of_row<Cells>(key < count ? values : row_or_zeros(rows, key), memory.width,
                        space.values + key * space.depth);
  }
  rows_as_depth<Cells>(rows, space.keys_depth, space.width);
  std::fill_n(space.grad_keys, count * space.width, 0.0f);
  std::fill_n(space.grad_values, count * space.width, 0.0f);
}

template <class Cells>
BLIP_FAST_INLINE void write_queries(const Job& job, int64_t head, const int64_t* rows,
                                    int64_t count, const Space<Cells>& space) {
  using T = typename Cells::Element;
  float* const row = space.grad_keys;  // free by now
  for (int64_t r = 0; r < count; ++r) {
    const float* const grad = space.blocks[r / kRows].grad_q + r % kRows;
    for (int64_t i = 0; i < space.width; ++i) row[i] = grad[i * kRows];
    T* const to = static_cast<T*>(job.grad_q) +
                  (rows[r] * job.memory.heads + head) * job.memory.width;
    write_row<Cells>(row, 1.0f, to, job.memory.width);
  }
}

template <class Level>
BLIP_FAST_INLINE void run_unit(const Job& job, int64_t unit, Workspace& from) {
  using Cells = typename Level::Cells;
  using T = typename Cells::Element;
  const Memory& memory = job.memory;
  const int64_t m = unit / memory.heads, head = unit % memory.heads, width = memory.width;
  const int64_t* const rows = job.rows->rows.data() + job.rows->first[m];
  const int64_t count = job.rows->first[m + 1] - job.rows->first[m];
  const int64_t keys = count == 0                   ? 0
                       : job.key_lengths != nullptr ? job.key_lengths[m]
                                                    : memory.tokens;
  const float root = 1.0f / std::sqrt(static_cast<float>(width));
  const Space<Cells> space(width, count, from);
  begin<Cells>(job, head, rows, count, space);
  const int64_t stride = 2 * memory.heads * width, values = memory.heads * width;
  T* grad = static_cast<T*>(job.grad_memory) + m * memory.tokens * stride + head * width;
  for (int64_t key = 0; key < keys; key += kKeys) {
    const int64_t size = std::min(kKeys, keys - key);
    load_keys<Cells>(memory, memory.keys<T>(m, head) + key * memory.token_stride, size, space);
    for (int64_t r = 0; r < count; r += kRows) {
      one_block<Level>(space, space.blocks[r / kRows], size, std::min(kRows, count - r), root);
    }
    for (int64_t k = 0; k < size; ++k, grad += stride) {
      write_row<Cells>(space.grad_keys + k * space.width, 1.0f, grad, width);
      write_row<Cells>(space.grad_values + k * space.width, 1.0f, grad + values, width);
    }
  }
  for (int64_t k = keys; k < memory.tokens; ++k, grad += stride) {
    std::fill_n(grad, width, T(0.0f));
    std::fill_n(grad + values, width, T(0.0f));
  }
  write_queries<Cells>(job, head, rows, count, space);
}

// One copy of a unit's code for each instruction set.
template <class T>
void unit_portable(const Job& job, int64_t unit, Workspace& from) {
  run_unit<PortableLevel<T>>(job, unit, from);
}

#if defined(__x86_64__)
template <class T>
BLIP_FAST_TARGET_AVX2 void unit_avx2(const Job& job, int64_t unit, Workspace& from) {
  run_unit<Avx2Level<T>>(job, unit, from);
}
template <class T>
BLIP_FAST_TARGET_AVX512 void unit_avx512(const Job& job, int64_t unit, Workspace& from) {
  run_unit<Avx512Level<T>>(job, unit, from);
}
BLIP_FAST_TARGET_AVX512BF16 void unit_avx512bf16(const Job& job, int64_t unit, Workspace& from) {
  run_unit<Avx512Bf16Level>(job, unit, from);
}
#endif

template <class T>
auto pick_unit() {
#if defined(__x86_64__)
  const Isa isa = current_isa();
  if (std::is_same_v<T, BFloat16> && isa >= Isa::avx512bf16) return &unit_avx512bf16;
  if (isa >= Isa::avx512) return &unit_avx512<T>;
  if (isa == Isa::avx2) return &unit_avx2<T>;
#endif
  return &unit_portable<T>;
}

std::tuple<Tensor, Tensor> cross_attention_backward(
    const Tensor& grad, const Tensor& q, const Tensor& memory, const Tensor& out,
    const Tensor& logsumexp, const Tensor& offsets, const Tensor& index,
    const std::optional<Tensor>& key_lengths) {
  const Memory view = memory_of(memory, q, "memory");
  for (const auto& [tensor, name] : {std::pair{&grad, "grad"}, std::pair{&out, "out"}}) {
    check_same_shape(*tensor, q, name, "q");
    check_contiguous(*tensor, name);
    check_dtype(*tensor, q.scalar_type(), name);
  }
  check_contiguous(logsumexp, "logsumexp");
  check_dtype(logsumexp, ScalarType::Float, "logsumexp");
  STD_TORCH_CHECK(logsumexp.numel() == q.size(0) * q.size(1), "logsumexp has ", logsumexp.numel(),
                  " elements, expected one for each of ", q.size(0) * q.size(1), " rows of heads");
  const MemoryRows rows = rows_of_texts(q.size(0), offsets, index, view.count);
  Tensor grad_q = torch::stable::empty_like(q);
  Tensor grad_memory = torch::stable::new_empty(
      memory, {view.count, view.tokens, int64_t{2}, view.heads, view.width});
  const Job job{grad.const_data_ptr(), q.const_data_ptr(), out.const_data_ptr(),
                static_cast<const float*>(logsumexp.const_data_ptr()), view,
                check_key_lengths(key_lengths, view), &rows, grad_q.mutable_data_ptr(),
                grad_memory.mutable_data_ptr()};
  int64_t most = 0;
  for (int64_t m = 0; m < view.count; ++m) {
    most = std::max(most, rows.first[m + 1] - rows.first[m]);
  }
  STD_TORCH_CHECK(
      q.scalar_type() == ScalarType::Float || q.scalar_type() == ScalarType::BFloat16, "q is ",
      toString(q.scalar_type()), ", expected float32 or bfloat16; pass q.float()");
  const auto run =
      q.scalar_type() == ScalarType::Float ? pick_unit<float>() : pick_unit<BFloat16>();
  const int64_t work = 5 * q.numel() * view.tokens;
  for_units(view.count * view.heads, work, workspace_cells(view.width, most),
            [&](int64_t unit, Workspace& from) { run(job, unit, from); });
  return {grad_q, grad_memory};
}

}  // namespace
}  // namespace blip_fast

STABLE_TORCH_LIBRARY_IMPL(blip_fast, CPU, m) {
  m.impl("cross_attention_backward.native", TORCH_BOX(&blip_fast::cross_attention_backward));
}

// Rows of queries that share a memory: found once per call by a counting sort, never copied.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <blip_fast/check.h>
#include <blip_fast/panels.h>

namespace blip_fast {

// Keys and values of M memories of K tokens, [M, K, 2, H, D]; the last three axes are contiguous.
struct Memory {
  const void* data;
  int64_t count, tokens, heads, width;
  int64_t memory_stride, token_stride;  // in elements

  template <class T>
  const T* keys(int64_t memory, int64_t head) const {
    return static_cast<const T*>(data) + memory * memory_stride + head * width;
  }
  template <class T>
  const T* values(int64_t memory, int64_t head) const {
    return keys<T>(memory, head + heads);
  }
};

// The rows of memory m are rows[first[m]] to rows[first[m + 1]], in ascending order.
struct MemoryRows {
  std::vector<int64_t> first, rows;
};

// `memory_of(row)` is checked to be in range by the caller.
template <class MemoryOf>
MemoryRows group_rows(int64_t memories, int64_t rows, const MemoryOf& memory_of) {
  MemoryRows result{std::vector<int64_t>(memories + 1), std::vector<int64_t>(rows)};
  for (int64_t row = 0; row < rows; ++row) ++result.first[memory_of(row) + 1];
  for (int64_t m = 0; m < memories; ++m) result.first[m + 1] += result.first[m];
  std::vector<int64_t> next(result.first.begin(), result.first.end() - 1);
  for (int64_t row = 0; row < rows; ++row) result.rows[next[memory_of(row)]++] = row;
  return result;
}

// Multiply-adds below which one thread is enough: waking another takes some 10 us, and
// milliseconds where other programs hold the cores.
constexpr int64_t kWorthThreads = 1 << 20;

// Runs body(unit, workspace) for each unit on all threads, each with a workspace of `cells`. A
// thread that is done takes the next unit, because units cost as much as their memories have rows.
// `work`: multiply-adds of all units together.
template <class Body>
void for_units(int64_t units, int64_t work, int64_t cells, const Body& body) {
  std::atomic<int64_t> next{0};
  const int64_t grain = work < kWorthThreads ? std::max<int64_t>(1, units) : 1;
  torch::stable::parallel_for(0, units, grain, [&](int64_t, int64_t) {
    int64_t unit = next++;
    if (unit >= units) return;
    Workspace workspace(cells);
    for (; unit < units; unit = next++) {
      workspace.reset();
      body(unit, workspace);
    }
  });
}

inline Memory memory_of(const Tensor& memory, const Tensor& q, const char* name) {
  STD_TORCH_CHECK(q.dim() == 3, "q has ", q.dim(), " dimensions, expected 3: [rows, heads, width]");
  STD_TORCH_CHECK(memory.dim() == 5 && memory.size(2) == 2 && memory.size(3) == q.size(1) &&
                      memory.size(4) == q.size(2),
                  name, " does not fit q; it must be [*, *, 2, ", q.size(1), ", ", q.size(2), "]");
  const int64_t heads = q.size(1), width = q.size(2);
  STD_TORCH_CHECK(width % 16 == 0 && width > 0 && width <= 128, "heads are ", width,
                  " wide, expected a multiple of 16 up to 128; use the reference");
  check_contiguous(q, "q");
  check_dtype(memory, q.scalar_type(), name);
  STD_TORCH_CHECK(memory.numel() == 0 || (memory.stride(4) == 1 &&
                                          (heads == 1 || memory.stride(3) == width) &&
                                          memory.stride(2) == heads * width),
                  "the last three axes of ", name, " are not contiguous; pass ", name,
                  ".contiguous()");
  return {memory.const_data_ptr(), memory.size(0),   memory.size(1),  heads, width,
          memory.stride(0),        memory.stride(1)};
}

inline const int64_t* check_index(const Tensor& index, int64_t length, int64_t memories) {
  check_vector(index, length, "index");
  check_contiguous(index, "index");
  check_dtype(index, ScalarType::Long, "index");
  const auto* const values = static_cast<const int64_t*>(index.const_data_ptr());
  for (int64_t i = 0; i < length; ++i) {
    STD_TORCH_CHECK(values[i] >= 0 && values[i] < memories, "index[", i, "] is ", values[i],
                    ", but there are ", memories, " memories");
  }
  return values;
}

// The rows of texts: text n, rows offsets[n] to offsets[n + 1], points at memory index[n].
inline MemoryRows rows_of_texts(int64_t rows, const Tensor& offsets, const Tensor& index,
                                int64_t memories) {
  const int64_t texts = index.numel();
  const int64_t* const memory = check_index(index, texts, memories);
  check_vector(offsets, texts + 1, "offsets");
  check_contiguous(offsets, "offsets");
  check_dtype(offsets, ScalarType::Int, "offsets");
  const auto* const ends = static_cast<const int32_t*>(offsets.const_data_ptr());
  STD_TORCH_CHECK(ends[0] == 0 && ends[texts] == rows, "offsets go from ", ends[0], " to ",
                  ends[texts], ", but q has rows 0 to ", rows);
  std::vector<int64_t> of_row(rows);
  for (int64_t n = 0; n < texts; ++n) {
    STD_TORCH_CHECK(ends[n] <= ends[n + 1] && ends[n + 1] <= rows, "offsets[", n + 1, "] is ",
                    ends[n + 1], "; offsets must ascend from 0 to ", rows);
    for (int64_t row = ends[n]; row < ends[n + 1]; ++row) of_row[row] = memory[n];
  }
  return group_rows(memories, rows, [&](int64_t row) { return of_row[row]; });
}

// Tokens of each memory that count, or null where all do.
inline const int64_t* check_key_lengths(const std::optional<Tensor>& lengths,
                                        const Memory& memory) {
  if (!lengths) return nullptr;
  check_vector(*lengths, memory.count, "key_lengths");
  check_contiguous(*lengths, "key_lengths");
  check_dtype(*lengths, ScalarType::Long, "key_lengths");
  const auto* const values = static_cast<const int64_t*>(lengths->const_data_ptr());
  for (int64_t m = 0; m < memory.count; ++m) {
    STD_TORCH_CHECK(values[m] >= 0 && values[m] <= memory.tokens, "key_lengths[", m, "] is ",
                    values[m], ", but memories have ", memory.tokens, " tokens");
  }
  return values;
}

// Rows [T, H, D] of queries against the memories that `rows` found for them.
struct MemoryAttention {
  const void* q;
  Memory memory;
  const int64_t* key_lengths;  // [M] or null
  const MemoryRows* rows;
  void* out;         // as q
  float* logsumexp;  // [T, H] or null
};

// In csrc/cpu/cross_attention.cpp; `dtype` is float32 or bfloat16.
void attend_to_memory(const MemoryAttention& job, ScalarType dtype);

}  // namespace blip_fast

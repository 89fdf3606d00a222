// What the forward and the backward of self-attention share: where the rows of a sequence lie, and
// how the work is cut into pieces.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <blip_fast/check.h>
#include <blip_fast/isa.h>
#include <blip_fast/pack.h>

namespace blip_fast {

// Query rows `from` to `to` of one head of the sequence at row `first` of all rows.
struct AttentionTask {
  int64_t first, length, head, from, to;
};

// qkv [T, 3, H, D], dense or packed; sequence n is rows offsets[n] to offsets[n + 1].
struct AttentionShape {
  std::vector<int64_t> offsets;
  int64_t heads, width, longest;
  bool causal;

  int64_t tokens() const { return offsets.back(); }
  int64_t row() const { return heads * width; }
  // `part`: 0 queries, 1 keys, 2 values; `from` counts from the start of the sequence.
  template <class T>
  Rows<T> rows(const T* qkv, int part, const AttentionTask& t, int64_t from, int64_t count) const {
    const T* const first = qkv + ((t.first + from) * 3 + part) * row() + t.head * width;
    return {first, 3 * row(), count, width};
  }
  // The same rows of a tensor [T, H, D].
  template <class T>
  Rows<T> rows_of_out(const T* out, const AttentionTask& t, int64_t from, int64_t count) const {
    return {out + (t.first + from) * row() + t.head * width, row(), count, width};
  }
  // How many keys the query at `position` sees.
  int64_t seen(const AttentionTask& t, int64_t position) const {
    return causal ? position + 1 : t.length;
  }
};

// Reads offsets, and checks all that a kernel relies on to stay inside its tensors.
inline AttentionShape attention_shape(const Tensor& qkv, const std::optional<Tensor>& offsets,
                                      int64_t max_length, bool causal) {
  check_contiguous(qkv, "qkv");
  const int64_t d = qkv.dim();
  STD_TORCH_CHECK(d == (offsets ? 4 : 5) && qkv.size(d - 3) == 3,
                  "qkv must be [N, S, 3, H, D], or [T, 3, H, D] with offsets");
  AttentionShape shape{{}, qkv.size(d - 2), qkv.size(d - 1), 0, causal};
  if (!offsets) {
    for (int64_t n = 0; n <= qkv.size(0); ++n) shape.offsets.push_back(n * qkv.size(1));
    shape.longest = qkv.size(1);
    return shape;
  }
  check_contiguous(*offsets, "offsets");
  check_dtype(*offsets, ScalarType::Int, "offsets");
  STD_TORCH_CHECK(offsets->dim() == 1 && offsets->numel() >= 1,
                  "offsets must be [sequences + 1]; it has ", offsets->numel(), " elements");
  const auto* const data = static_cast<const int32_t*>(offsets->const_data_ptr());
  shape.offsets.assign(data, data + offsets->numel());
  STD_TORCH_CHECK(data[0] == 0 && shape.offsets.back() == qkv.size(0), "offsets go from ", data[0],
                  " to ", shape.offsets.back(), "; qkv has rows 0 to ", qkv.size(0));
  for (size_t n = 1; n < shape.offsets.size(); ++n) {
    const int64_t length = shape.offsets[n] - shape.offsets[n - 1];
    STD_TORCH_CHECK(length >= 0 && length <= max_length, "sequence ", n - 1, " has length ", length,
                    "; it must be from 0 to max_length, ", max_length);
    shape.longest = std::max(shape.longest, length);
  }
  return shape;
}

// Cuts the work into tasks of at most `rows` queries, each sequence and head by itself.
inline std::vector<AttentionTask> attention_tasks(const AttentionShape& shape, int64_t rows) {
  std::vector<AttentionTask> tasks;
  for (size_t n = 1; n < shape.offsets.size(); ++n) {
    const int64_t first = shape.offsets[n - 1], length = shape.offsets[n] - first;
    for (int64_t head = 0; head < shape.heads; ++head) {
      for (int64_t from = 0; from < length; from += rows) {
        tasks.push_back({first, length, head, from, std::min(length, from + rows)});
      }
    }
  }
  return tasks;
}

// Runs body(begin, end) over all tasks, one piece a thread, the pieces of about equal work.
// `grain`: products of a query and a key that are worth a thread of their own.
template <class Body>
void run_tasks(const std::vector<AttentionTask>& tasks, int64_t grain, const Body& body) {
  std::vector<int64_t> work{0};
  for (const AttentionTask& t : tasks) {
    // Packing a sequence costs about as much as a few queries.
    work.push_back(work.back() + (t.to - t.from + 4) * t.length);
  }
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t pieces = std::clamp<int64_t>(work.back() / grain, 1, threads);
  const auto cut = [&](int64_t piece) {
    const int64_t target = work.back() / pieces * piece;
    return piece == pieces ? static_cast<int64_t>(tasks.size())
                           : std::lower_bound(work.begin(), work.end(), target) - work.begin();
  };
  torch::stable::parallel_for(0, pieces, 1, [&](int64_t first, int64_t last) {
    body(cut(first), cut(last));
  });
}

}  // namespace blip_fast

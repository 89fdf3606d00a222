// The kernel of attention to memory, one query a sequence. Bound by the bandwidth of the memory.
//
// A cluster of blocks serves one head of one image: it reads that image's keys and values once for
// all of its sequences. Each block has a part of the keys, each of its warps every fourth, and what
// they find is added up through shared memory, at last across the cluster: one launch, and nothing
// is written but the result.
#pragma once

#include <blip_fast/key_stream.cuh>
#include <blip_fast/softmax_parts.cuh>

namespace blip_fast {

template <class T>
struct CrossJob {
  const T* q;                  // [B, H, width]
  const T* memory;             // [M, K, 2, H, width]; the last three axes are dense
  const int64_t* index;        // [B]
  const int64_t* key_lengths;  // [M], or null where all keys count
  T* out;                      // as q
  int64_t memory_stride, token_stride;  // in numbers
  int sequences, heads, keys;
  int most_blocks;  // that a cluster may have
  float scale;      // of scores of base 2
  bool aligned;     // see KeyStream
};

template <class T, int kWidth>
struct CrossShared {
  Piece<T> ring[KeyShape<T, kWidth>::kSlots][kThreads];
  Part<kWidth> of_warp[kWarps], of_block;
  int members[kWarps][kQueries];
};

// Keys of a block, by the number of keys alone: sums do not depend on what else is in the batch,
// nor on how far memories are padded.
template <class T, int kWidth>
__host__ __device__ constexpr int keys_of_block(int keys, int most_blocks) {
  const int at_least = (keys + most_blocks - 1) / most_blocks;
  return at_least > KeyShape<T, kWidth>::kKeys ? at_least : KeyShape<T, kWidth>::kKeys;
}

// The number of sequences of the image, and from the first-th on at most kQueries of them, in
// ascending order. Every warp looks for itself: the index is small, and nobody needs to wait.
__device__ inline int find_members(const int64_t* index, int sequences, int64_t image, int first,
                                   int* members) {
  const int lane = threadIdx.x % kWarp;
  int count = 0;
  __syncwarp();  // the members of before are no longer needed
#pragma unroll 4
  for (int start = 0; start < sequences; start += kWarp) {
    const int sequence = start + lane;
    const bool found = sequence < sequences && index[sequence] == image;
    const unsigned all = __ballot_sync(kAllLanes, found);
    const int place = count + __popc(all & ((1u << lane) - 1)) - first;
    if (found && place >= 0 && place < kQueries) members[place] = sequence;
    count += __popc(all);
  }
  __syncwarp();
  return count;
}

// The softmax of one thread: its group's keys, its own piece of their values.
template <class T, int kWidth>
struct Attention {
  using Shape = KeyShape<T, kWidth>;
  using Stream = KeyStream<T, kWidth>;

  int queries;  // of kQueries
  float q[kQueries][Shape::kPiece];
  float top[kQueries], total[kQueries], sum[kQueries][Shape::kPiece];

  __device__ void begin(const CrossJob<T>& job, const int* members, int number, int head,
                        int piece) {
    queries = number;
#pragma unroll
    for (int i = 0; i < kQueries; ++i) {
      const bool known = i < queries && piece < Shape::kPieces;
      const int64_t row = known ? static_cast<int64_t>(members[i]) * job.heads + head : 0;
      top[i] = minus_infinity();
      total[i] = 0.0f;
#pragma unroll
      for (int e = 0; e < Shape::kPiece; ++e) {
        const int64_t place = row * kWidth + piece * Shape::kPiece + e;
        q[i][e] = known ? static_cast<float>(job.q[place]) * job.scale : 0.0f;
        sum[i][e] = 0.0f;
      }
    }
  }

  __device__ void attend(const Stream& stream, int stage) {
    float weights[kQueries][kSteps], pieces[kSteps][Shape::kPiece];
    for_steps([&](int step) { stream.read(pieces[step], stage, step, false); });
    for_queries([&](int i) {
      float most = top[i];
      for_steps([&](int step) {
        float score = 0.0f;
#pragma unroll
        for (int e = 0; e < Shape::kPiece; ++e) score += q[i][e] * pieces[step][e];
        score = over_lanes<1, Shape::kLanes>(score, [](float a, float b) { return a + b; });
        weights[i][step] = stream.key(stage, step) < stream.end ? score : minus_infinity();
        most = fmaxf(most, weights[i][step]);
      });
      shrink(i, most);
      for_steps([&](int step) {
        weights[i][step] = exp2f(weights[i][step] - finite(most));
        total[i] += weights[i][step];
      });
    });
    for_steps([&](int step) { stream.read(pieces[step], stage, step, true); });
    for_queries([&](int i) {
      for_steps([&](int step) {
#pragma unroll
        for (int e = 0; e < Shape::kPiece; ++e) sum[i][e] += weights[i][step] * pieces[step][e];
      });
    });
  }

  // Adds up the groups of the warp.
  __device__ void end(Part<kWidth>& part, int piece) {
    const auto largest = [](float a, float b) { return fmaxf(a, b); };
    const auto both = [](float a, float b) { return a + b; };
    const int lane = threadIdx.x % kWarp;
    const bool writes = lane < Shape::kLanes && piece < Shape::kPieces;
    for_queries([&](int i) {
      shrink(i, over_lanes<Shape::kLanes, kWarp>(top[i], largest));
      total[i] = over_lanes<Shape::kLanes, kWarp>(total[i], both);
      if (lane == 0) part.top[i] = top[i], part.total[i] = total[i];
#pragma unroll
      for (int e = 0; e < Shape::kPiece; ++e) {
        sum[i][e] = over_lanes<Shape::kLanes, kWarp>(sum[i][e], both);
        if (writes) part.sum[i][piece * Shape::kPiece + e] = sum[i][e];
      }
    });
  }

 private:
  // Unrolled, because registers have no index; all lanes of a warp have the same queries.
  template <class Body>
  __device__ void for_queries(const Body& body) {
#pragma unroll
    for (int i = 0; i < kQueries; ++i) {
      if (i < queries) body(i);
    }
  }

  template <class Body>
  __device__ static void for_steps(const Body& body) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) body(step);
  }

  // Over lanes that differ in the bits from kFrom to below kTo; all get the result.
  template <int kFrom, int kTo, class Both>
  __device__ static float over_lanes(float value, const Both& both) {
#pragma unroll
    for (int bit = kFrom; bit < kTo; bit *= 2) {
      value = both(value, __shfl_xor_sync(kAllLanes, value, bit));
    }
    return value;
  }

  __device__ void shrink(int i, float most) {
    const float factor = exp2f(top[i] - finite(most));
    top[i] = most;
    total[i] *= factor;
#pragma unroll
    for (int e = 0; e < Shape::kPiece; ++e) sum[i][e] *= factor;
  }
};

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) decode_cross_kernel(const CrossJob<T> job) {
  using Shape = KeyShape<T, kWidth>;
  auto& shared = *static_cast<CrossShared<T, kWidth>*>(shared_memory());
  const int blocks = cluster_blocks(), rank = cluster_rank();
  const int64_t unit = blockIdx.x / blocks;
  const int64_t image = unit / job.heads;
  const int head = static_cast<int>(unit % job.heads);
  const int warp = threadIdx.x / kWarp, piece = threadIdx.x % Shape::kLanes;
  int* const members = shared.members[warp];

  const int count = find_members(job.index, job.sequences, image, 0, members);
  if (count == 0) return;  // nothing is read for nobody; all blocks of the cluster agree
  const int64_t counted = job.key_lengths == nullptr ? job.keys : job.key_lengths[image];
  const int keys = static_cast<int>(counted < job.keys ? counted : job.keys);
  const int part = keys_of_block<T, kWidth>(keys, job.most_blocks);
  const int begin = min(rank * part, keys);
  const int64_t start = image * job.memory_stride + head * kWidth + piece * Shape::kPiece;
  const KeyStream<T, kWidth> stream{job.memory + start, job.token_stride,
                                    static_cast<int64_t>(job.heads) * kWidth, begin,
                                    min(begin + part, keys), job.aligned,
                                    piece >= Shape::kPieces, shared.ring[0] + threadIdx.x};

  for (int first = 0; first < count; first += kQueries) {
    // Of many sequences, the later find the keys in shared memory, or at worst in the L2 cache.
    if (first == 0 || !stream.all_fit()) stream.request_first();
    if (first > 0) find_members(job.index, job.sequences, image, first, members);
    Attention<T, kWidth> attention;
    attention.begin(job, members, min(kQueries, count - first), head, piece);
    for (int stage = 0; stage < stream.stages(); ++stage) {
      stream.wait();
      attention.attend(stream, stage);
      stream.request(stage + Shape::kStages);
    }
    attention.end(shared.of_warp[warp], piece);
    __syncthreads();
    Part<kWidth>& mine = shared.of_block;
    merge<kWidth>(
        attention.queries, kWarps, threadIdx.x, kThreads,
        [&](int other) { return &shared.of_warp[other]; },
        [&](int query, int column, float top, float total, float sum) {
          if (column == 0) mine.top[query] = top, mine.total[query] = total;
          mine.sum[query][column] = sum;
        });
    cluster_sync();
    merge<kWidth>(
        attention.queries, blocks, rank * kThreads + threadIdx.x, blocks * kThreads,
        [&](int other) { return shared_of(&mine, other); },
        [&](int query, int column, float, float total, float sum) {
          const int64_t row = static_cast<int64_t>(members[query]) * job.heads + head;
          job.out[row * kWidth + column] = static_cast<T>(total == 0.0f ? 0.0f : sum / total);
        });
    cluster_sync();  // nobody leaves, or writes anew, while others still read
  }
}

}  // namespace blip_fast

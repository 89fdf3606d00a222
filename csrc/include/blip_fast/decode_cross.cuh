// The kernel of attention to memory, one query a sequence. Bound by the bandwidth of the memory.
//
// A cluster of blocks serves one head of one image: it reads that image's keys and values once for
// all of its sequences. Each block has a part of the keys, each of its warps every fourth, and what
// they find is added up through shared memory, at last across the cluster: one launch, and nothing
// is written but the result.
#pragma once

#include <blip_fast/key_attention.cuh>
#include <blip_fast/tile_attention.cuh>

namespace blip_fast {

// How sequences of an image attend together: by lanes, 4 at once, which keep 64 sums and factors in
// a thread's registers, or where the numbers allow it by matrix units, 8 at once.
//
// A block has 40 or 48 KB of keys and values under way, and a multiprocessor of an H200 at least 3
// blocks; it needs some 30 KB (36 bytes a ns, a latency of 800 ns). Not measured yet.
template <class T, int kWidth>
struct CrossWay {
  using Stream = KeyStream<T, KeyShape<T, kWidth, 160>, InOrder>;
  using Attend = Attention<T, kWidth, 4, Stream>;
};
template <class T>
  requires(sizeof(T) == 2)
struct CrossWay<T, 64> {
  using Stream = TileStream<T, 3>;
  using Attend = TileAttention<T, Stream>;
};

template <class T>
struct CrossJob {
  Queries<T> queries;
  const T* memory;             // [M, K, 2, H, width]; the last three axes are dense
  const int64_t* index;        // [B]
  const int64_t* key_lengths;  // [M], or null where all keys count
  int64_t memory_stride, token_stride;
  int keys;
  int most_blocks;  // that a cluster may have
  bool aligned;     // see KeyStream
};

template <class T, int kWidth>
struct CrossShared {
  using Way = CrossWay<T, kWidth>;
  static constexpr int kTogether = Way::Attend::kQueries;
  typename Way::Stream::Ring ring;
  Part<kWidth, kTogether> of_warp[kWarps], of_block;
  int members[kWarps][kTogether];
};

// Blocks that share so many keys, as evenly as tiles allow, and keys of each. By the number of keys
// alone: sums do not depend on what else is in the batch, nor on how far memories are padded.
template <class T, int kWidth>
__host__ __device__ constexpr int blocks_of(int keys, int most_blocks) {
  constexpr int kKeys = CrossWay<T, kWidth>::Stream::kKeys;
  const int blocks = (keys + kKeys - 1) / kKeys;
  return blocks < 1 ? 1 : blocks < most_blocks ? blocks : most_blocks;
}
template <class T, int kWidth>
__host__ __device__ constexpr int keys_of_block(int keys, int most_blocks) {
  const int blocks = blocks_of<T, kWidth>(keys, most_blocks);
  return (keys + blocks * kTile - 1) / (blocks * kTile) * kTile;
}

// The number of sequences of the image, and from the first-th on at most kTogether of them, in
// ascending order. Every warp looks for itself: the index is small, and nobody needs to wait.
template <int kTogether>
__device__ int find_members(const int64_t* index, int sequences, int64_t image, int first,
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
    if (found && place >= 0 && place < kTogether) members[place] = sequence;
    count += __popc(all);
  }
  __syncwarp();
  return count;
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads, 3) decode_cross_kernel(const CrossJob<T> job) {
  using Shared = CrossShared<T, kWidth>;
  using Stream = typename Shared::Way::Stream;
  constexpr int kTogether = Shared::kTogether;
  auto& shared = *static_cast<Shared*>(shared_memory());
  const Queries<T>& queries = job.queries;
  const int blocks = cluster_blocks(), rank = cluster_rank();
  const int64_t unit = blockIdx.x / blocks;
  const int64_t image = unit / queries.heads;
  const int head = static_cast<int>(unit % queries.heads);
  const int warp = threadIdx.x / kWarp;
  int* const members = shared.members[warp];

  const int count = find_members<kTogether>(job.index, queries.sequences, image, 0, members);
  if (count == 0) return;  // nothing is read for nobody; all blocks of the cluster agree
  const int64_t counted = job.key_lengths == nullptr ? job.keys : job.key_lengths[image];
  const int keys = static_cast<int>(counted < job.keys ? counted : job.keys);
  const int part = keys_of_block<T, kWidth>(keys, job.most_blocks);
  const int begin = min(rank * part, keys);
  const int64_t first_key = image * job.memory_stride + head * kWidth;
  const Stream stream{job.memory + first_key + Stream::piece() * Stream::kPiece,
                      {job.token_stride},
                      static_cast<int64_t>(queries.heads) * kWidth,
                      begin,
                      min(begin + part, keys),
                      job.aligned,
                      &shared.ring};

  for (int first = 0; first < count; first += kTogether) {
    // Of many sequences, the later find the keys in shared memory, or at worst in the L2 cache.
    if (first == 0 || !stream.all_fit()) stream.request_first();
    if (first > 0) find_members<kTogether>(job.index, queries.sequences, image, first, members);
    typename Shared::Way::Attend attention;
    attention.begin(queries, members, min(kTogether, count - first), head);
    attention.attend_to_all(stream);
    attention.end(shared.of_warp[warp]);
    __syncthreads();
    auto& mine = shared.of_block;
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
          queries.template write<kWidth>(members[query], head, column, total, sum);
        });
    cluster_sync();  // nobody leaves, or writes anew, while others still read
  }
}

}  // namespace blip_fast

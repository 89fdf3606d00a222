// The kernel of attention to a sequence's own past, which is found through its ancestors.
//
// A block serves one head of one sequence. Pasts are short, and beams share their beginnings in the
// caches of the GPU, so nothing is split: the block's warps have every fourth key each.
#pragma once

#include <blip_fast/key_attention.cuh>

namespace blip_fast {

// Captions have some 20 positions; two stages of 16-bit numbers are 16 KB.
template <class T, int kWidth>
using PastStream = KeyStream<T, KeyShape<T, kWidth, 64>, InRows>;

template <class T>
struct PastJob {
  Queries<T> queries;
  const T* cache;            // [R, P, 2, H, width]; the last three axes are dense
  const int64_t* ancestors;  // [B, P]: rows of the cache
  const int64_t* lengths;    // [B]
  int64_t row_stride, position_stride;
  int positions;
  bool aligned;  // see KeyStream
};

template <class T, int kWidth>
struct PastShared {
  typename PastStream<T, kWidth>::Ring ring;
  Part<kWidth, 1> of_warp[kWarps];
};

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) decode_past_kernel(const PastJob<T> job) {
  using Stream = PastStream<T, kWidth>;
  auto& shared = *static_cast<PastShared<T, kWidth>*>(shared_memory());
  const Queries<T>& queries = job.queries;
  const int sequence = static_cast<int>(blockIdx.x) / queries.heads;
  const int head = static_cast<int>(blockIdx.x) % queries.heads;
  const int64_t length = job.lengths[sequence];
  const int64_t* const rows = job.ancestors + static_cast<int64_t>(sequence) * job.positions;
  const Stream stream{job.cache + head * kWidth + Stream::piece() * Stream::kPiece,
                      {rows, job.row_stride, job.position_stride},
                      static_cast<int64_t>(queries.heads) * kWidth,
                      0,
                      static_cast<int>(length < job.positions ? length : job.positions),
                      job.aligned,
                      &shared.ring};
  stream.request_first();
  Attention<T, kWidth, 1, Stream> attention;
  attention.begin(queries, &sequence, 1, head);
  attention.attend_to_all(stream);
  attention.end(shared.of_warp[threadIdx.x / kWarp]);
  __syncthreads();
  merge<kWidth>(
      1, kWarps, threadIdx.x, kThreads, [&](int warp) { return &shared.of_warp[warp]; },
      [&](int, int column, float, float total, float sum) {
        queries.template write<kWidth>(sequence, head, column, total, sum);
      });
}

}  // namespace blip_fast

// What a kernel asks of the block it runs in, and of the cluster that the block belongs to.
//
// A cluster is a few blocks on neighbouring multiprocessors that read each other's shared memory.
// There are none before sm_90: there a cluster is one block, and all of this is the block's own.
// Kernels ask here and nowhere else, so that the tests can answer instead of a GPU.
#pragma once

#include <cooperative_groups.h>

namespace blip_fast {

// The dynamic shared memory of this block; at the same place in every block of a cluster.
__device__ inline void* shared_memory() {
  extern __shared__ uint4 shared_memory_bytes[];
  return shared_memory_bytes;
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900

__device__ inline int cluster_blocks() { return 1; }
__device__ inline int cluster_rank() { return 0; }
__device__ inline void cluster_sync() { __syncthreads(); }
template <class T>
__device__ T* shared_of(T* mine, int) {
  return mine;
}

#else

__device__ inline int cluster_blocks() { return cooperative_groups::this_cluster().num_blocks(); }
__device__ inline int cluster_rank() { return cooperative_groups::this_cluster().block_rank(); }

// All threads of the cluster meet, and see what each other wrote to shared memory.
__device__ inline void cluster_sync() { cooperative_groups::this_cluster().sync(); }

// What `mine`, in shared memory, is in the cluster's block of that rank.
template <class T>
__device__ T* shared_of(T* mine, int rank) {
  return cooperative_groups::this_cluster().map_shared_rank(mine, rank);
}

#endif

}  // namespace blip_fast

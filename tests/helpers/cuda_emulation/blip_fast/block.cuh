// csrc/include/blip_fast/block.cuh, answered by the fibers: this file is found first.
#pragma once

#include <cuda_runtime.h>

namespace blip_fast {

inline void* shared_memory() { return emulation::current->block->shared(); }

inline int cluster_blocks() { return static_cast<int>(emulation::cluster->blocks.size()); }

inline int cluster_rank() { return emulation::current->block_number % cluster_blocks(); }

inline void cluster_sync(Where where = Where::current()) {
  const emulation::Fiber& me = *emulation::current;
  const int place = cluster_rank() * static_cast<int>(blockDim.x) + static_cast<int>(me.thread);
  emulation::meet(emulation::cluster->barrier, {"cluster_sync", where}, place, 0);
}

template <class T>
T* shared_of(T* mine, int rank) {
  emulation::Block& block = *emulation::current->block;
  emulation::Block& other = *emulation::cluster->blocks[rank];
  const auto place = reinterpret_cast<uint8_t*>(mine) - block.shared();
  if (place < 0 || place + sizeof(T) > block.size()) emulation::fail("is not in shared memory");
  if (other.running == 0) emulation::fail("reads the shared memory of a block that has ended");
  return reinterpret_cast<T*>(other.shared() + place);
}

}  // namespace blip_fast

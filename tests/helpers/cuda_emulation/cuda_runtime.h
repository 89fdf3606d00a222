// The part of CUDA C++ that our kernels use, on the fibers of fibers.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>

#include "fibers.h"

#define __device__
#define __host__
#define __global__
#define __launch_bounds__(...)

using std::max;
using std::min;

// Each barrier knows its line, so that threads that meet at different ones are found out.
using Where = std::source_location;

inline void __syncthreads(Where where = Where::current()) {
  emulation::Block& block = *emulation::current->block;
  emulation::meet(block.barrier, {"__syncthreads", where}, emulation::current->thread, 0);
}

inline void __syncwarp(unsigned mask = 0xffffffffu, Where where = Where::current()) {
  emulation::meet_warp("__syncwarp", mask, 0, where);
}

inline float __shfl_xor_sync(unsigned mask, float value, int bits, Where where = Where::current()) {
  const uint64_t word = std::bit_cast<uint32_t>(value);
  const auto& words = emulation::meet_warp("__shfl_xor_sync", mask, word, where);
  const int lane = emulation::current->thread % emulation::kLanes;
  return std::bit_cast<float>(static_cast<uint32_t>(words[lane ^ bits]));
}

inline unsigned __ballot_sync(unsigned mask, bool value, Where where = Where::current()) {
  const auto& words = emulation::meet_warp("__ballot_sync", mask, value, where);
  unsigned all = 0;
  for (int lane = 0; lane < emulation::kLanes; ++lane) all |= unsigned(words[lane]) << lane;
  return all;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

// The runtime, as far as launches go.

using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1;
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension = 1 };

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    dim3 clusterDim;
  } val;
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

namespace emulation {
inline int capability = 9;  // the major number
inline int last_cluster = 0;  // blocks of a cluster in the last launch
inline std::map<const void*, size_t> shared_limits;
}  // namespace emulation

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = emulation::capability;
  return cudaSuccess;
}

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  emulation::shared_limits[reinterpret_cast<const void*>(kernel)] = bytes;
  return bytes <= 227 << 10 ? cudaSuccess : cudaErrorInvalidValue;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const auto found = emulation::shared_limits.find(reinterpret_cast<const void*>(kernel));
  const size_t limit = found == emulation::shared_limits.end() ? 48 << 10 : found->second;
  const unsigned cluster = config->numAttrs > 0 ? config->attrs->val.clusterDim.x : 1;
  if (config->dynamicSmemBytes > limit || cluster > 8 || (cluster > 1 && emulation::capability < 9))
    return cudaErrorInvalidValue;
  emulation::last_cluster = cluster;
  emulation::launch(config->gridDim, config->blockDim, cluster, config->dynamicSmemBytes,
                    [&] { kernel(arguments...); });
  return cudaSuccess;
}

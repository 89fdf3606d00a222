// Attention of one query a sequence, to its own past and to the memory it points at: the launches.
//
// Nothing is copied from the GPU to choose a launch, and nothing is allocated but the result: a
// CUDA graph can capture it.
#include <bit>
#include <cmath>
#include <optional>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <blip_fast/check.h>
#include <blip_fast/decode_cross.cuh>
#include <blip_fast/decode_past.cuh>

namespace blip_fast {
namespace {

// Not every GPU has clusters of more blocks.
constexpr int kMostBlocks = 8;

void check_pairs(const Tensor& q, const Tensor& pairs, const char* name) {
  STD_TORCH_CHECK(q.dim() == 3, "q has ", q.dim(), " dimensions, expected 3: [rows, heads, width]");
  const int64_t heads = q.size(1), width = q.size(2);
  STD_TORCH_CHECK(pairs.dim() == 5 && pairs.size(2) == 2 && pairs.size(3) == heads &&
                      pairs.size(4) == width,
                  name, " does not fit q; it must be [*, *, 2, ", heads, ", ", width, "]");
  check_contiguous(q, "q");
  check_dtype(pairs, q.scalar_type(), name);
  STD_TORCH_CHECK(pairs.numel() == 0 ||
                      (pairs.stride(4) == 1 && (heads == 1 || pairs.stride(3) == width) &&
                       pairs.stride(2) == heads * width),
                  "the last three axes of ", name, " are not contiguous; pass ", name,
                  ".contiguous()");
}

const int64_t* check_integers(const Tensor& tensor, int64_t length, const char* name) {
  check_vector(tensor, length, name);
  check_contiguous(tensor, name);
  check_dtype(tensor, ScalarType::Long, name);
  return static_cast<const int64_t*>(tensor.const_data_ptr());
}

// To the pieces that threads copy.
bool is_aligned(const Tensor& pairs) {
  const auto address = reinterpret_cast<uintptr_t>(pairs.const_data_ptr());
  const int64_t size = pairs.element_size();
  return (address | pairs.stride(0) * size | pairs.stride(1) * size) % sizeof(Piece<float>) == 0;
}

// Clusters exist from compute capability 9.0 on.
int most_blocks(int device) {
  int major = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  return major >= 9 ? kMostBlocks : 1;
}

template <class T>
Queries<T> queries_of(const Tensor& q, Tensor& out) {
  const float scale = 1.4426950408889634f / std::sqrt(static_cast<float>(q.size(2)));  // log2(e)
  return {static_cast<const T*>(q.const_data_ptr()), static_cast<T*>(out.mutable_data_ptr()),
          static_cast<int>(q.size(0)), static_cast<int>(q.size(1)), scale};
}

template <class Job>
void launch(void (*kernel)(Job), const Job& job, int device, int64_t blocks,
            unsigned cluster_blocks, size_t shared) {
  STD_TORCH_CHECK(blocks < (int64_t{1} << 31), blocks,
                  " blocks are more than a GPU takes; split the call");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {cluster_blocks, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &cluster;
  config.numAttrs = cluster_blocks > 1 ? 1 : 0;
  STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(shared)));
  STD_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, job));
}

// Calls body.operator()<T, width>() for q's type and width.
template <class Body>
void for_type(const Tensor& q, const Body& body) {
  const auto for_width = [&]<class T>() {
    if (q.size(2) == 64) return body.template operator()<T, 64>();
    if (q.size(2) == 88) return body.template operator()<T, 88>();
    STD_TORCH_CHECK(false, "heads are ", q.size(2),
                    " wide, and the CUDA kernels take 64 and 88; use(\"triton\") takes others");
  };
  switch (q.scalar_type()) {
    case ScalarType::Float:
      return for_width.template operator()<float>();
    case ScalarType::BFloat16:
      return for_width.template operator()<__nv_bfloat16>();
    case ScalarType::Half:
      return for_width.template operator()<__half>();
    default:
      STD_TORCH_CHECK(false, "q is ", toString(q.scalar_type()),
                      ", expected float32, bfloat16 or float16; pass q.float()");
  }
}

Tensor decode_cross_attention(const Tensor& q, const Tensor& memory, const Tensor& index,
                              const std::optional<Tensor>& key_lengths) {
  check_pairs(q, memory, "memory");
  const int64_t* const places = check_integers(index, q.size(0), "index");
  const int64_t* const lengths =
      key_lengths ? check_integers(*key_lengths, memory.size(0), "key_lengths") : nullptr;
  Tensor out = torch::stable::empty_like(q);
  if (q.numel() == 0) return out;
  const int device = q.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  for_type(q, [&]<class T, int kWidth>() {
    const int keys = static_cast<int>(memory.size(1)), most = most_blocks(device);
    const CrossJob<T> job{queries_of<T>(q, out), static_cast<const T*>(memory.const_data_ptr()),
                          places, lengths, memory.stride(0), memory.stride(1), keys, most,
                          is_aligned(memory)};
    // A power of two: each GPU takes such clusters. Blocks that have no keys are soon done.
    const unsigned blocks = std::bit_ceil(static_cast<unsigned>(blocks_of<T, kWidth>(keys, most)));
    launch(&decode_cross_kernel<T, kWidth>, job, device, memory.size(0) * q.size(1) * blocks,
           blocks, sizeof(CrossShared<T, kWidth>));
  });
  return out;
}

Tensor decode_attention(const Tensor& q, const Tensor& cache, const Tensor& ancestors,
                        const Tensor& lengths) {
  check_pairs(q, cache, "cache");
  const int64_t* const counts = check_integers(lengths, q.size(0), "lengths");
  STD_TORCH_CHECK(ancestors.dim() == 2 && ancestors.size(0) == q.size(0) &&
                      ancestors.size(1) == cache.size(1),
                  "ancestors must be [", q.size(0), ", ", cache.size(1), "]");
  check_contiguous(ancestors, "ancestors");
  check_dtype(ancestors, ScalarType::Long, "ancestors");
  Tensor out = torch::stable::empty_like(q);
  if (q.numel() == 0) return out;
  const int device = q.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  for_type(q, [&]<class T, int kWidth>() {
    const PastJob<T> job{queries_of<T>(q, out),
                         static_cast<const T*>(cache.const_data_ptr()),
                         static_cast<const int64_t*>(ancestors.const_data_ptr()),
                         counts,
                         cache.stride(0),
                         cache.stride(1),
                         static_cast<int>(cache.size(1)),
                         is_aligned(cache)};
    launch(&decode_past_kernel<T, kWidth>, job, device, q.size(0) * q.size(1), 1u,
           sizeof(PastShared<T, kWidth>));
  });
  return out;
}

}  // namespace
}  // namespace blip_fast

STABLE_TORCH_LIBRARY_IMPL(blip_fast, CUDA, m) {
  m.impl("decode_attention.cuda", TORCH_BOX(&blip_fast::decode_attention));
  m.impl("decode_cross_attention.cuda", TORCH_BOX(&blip_fast::decode_cross_attention));
}

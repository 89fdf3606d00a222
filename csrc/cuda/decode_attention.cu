// Attention of one query a sequence to the memory it points at: the launch of the kernel.
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

namespace blip_fast {
namespace {

// More blocks of a cluster than 8 not every GPU has.
constexpr int kMostBlocks = 8;

void check(const Tensor& q, const Tensor& memory, const Tensor& index,
           const std::optional<Tensor>& key_lengths) {
  STD_TORCH_CHECK(q.dim() == 3, "q has ", q.dim(), " dimensions, expected 3: [rows, heads, width]");
  STD_TORCH_CHECK(memory.dim() == 5 && memory.size(2) == 2 && memory.size(3) == q.size(1) &&
                      memory.size(4) == q.size(2),
                  "memory does not fit q; it must be [*, *, 2, ", q.size(1), ", ", q.size(2), "]");
  const int64_t heads = q.size(1), width = q.size(2);
  check_contiguous(q, "q");
  check_dtype(memory, q.scalar_type(), "memory");
  STD_TORCH_CHECK(memory.numel() == 0 ||
                      (memory.stride(4) == 1 && (heads == 1 || memory.stride(3) == width) &&
                       memory.stride(2) == heads * width),
                  "the last three axes of memory are not contiguous; pass memory.contiguous()");
  check_vector(index, q.size(0), "index");
  check_contiguous(index, "index");
  check_dtype(index, ScalarType::Long, "index");
  if (!key_lengths) return;
  check_vector(*key_lengths, memory.size(0), "key_lengths");
  check_contiguous(*key_lengths, "key_lengths");
  check_dtype(*key_lengths, ScalarType::Long, "key_lengths");
}

// Clusters exist from compute capability 9.0 on.
int most_blocks(int device) {
  int major = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  return major >= 9 ? kMostBlocks : 1;
}

// To the pieces that threads copy.
bool is_aligned(const Tensor& memory) {
  const auto address = reinterpret_cast<uintptr_t>(memory.const_data_ptr());
  const int64_t size = memory.element_size();
  return (address | memory.stride(0) * size | memory.stride(1) * size) % sizeof(Piece<float>) == 0;
}

template <class T, int kWidth>
void launch(const Tensor& q, const Tensor& memory, const Tensor& index,
            const std::optional<Tensor>& key_lengths, Tensor& out) {
  const int device = q.get_device_index(), heads = static_cast<int>(q.size(1));
  const int keys = static_cast<int>(memory.size(1)), most = most_blocks(device);
  const CrossJob<T> job{
      static_cast<const T*>(q.const_data_ptr()),
      static_cast<const T*>(memory.const_data_ptr()),
      static_cast<const int64_t*>(index.const_data_ptr()),
      key_lengths ? static_cast<const int64_t*>(key_lengths->const_data_ptr()) : nullptr,
      static_cast<T*>(out.mutable_data_ptr()),
      memory.stride(0),
      memory.stride(1),
      static_cast<int>(q.size(0)),
      heads,
      keys,
      most,
      1.4426950408889634f / std::sqrt(static_cast<float>(kWidth)),  // log2(e) / sqrt(width)
      is_aligned(memory)};
  const int part = keys_of_block<T, kWidth>(keys, most);
  // A power of two: each GPU takes such clusters. Blocks that have no keys are soon done.
  const unsigned blocks = std::bit_ceil(static_cast<unsigned>((keys + part - 1) / part));
  const int64_t grid = memory.size(0) * heads * blocks;
  STD_TORCH_CHECK(grid < (int64_t{1} << 31), memory.size(0), " memories of ", heads,
                  " heads are more blocks than a GPU takes; split the call");

  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {blocks, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = sizeof(CrossShared<T, kWidth>);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &cluster;
  config.numAttrs = blocks > 1 ? 1 : 0;
  const auto kernel = &decode_cross_kernel<T, kWidth>;
  STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(config.dynamicSmemBytes)));
  STD_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, job));
}

template <class T, class... Arguments>
void launch_width(int64_t width, Arguments&&... arguments) {
  if (width == 64) return launch<T, 64>(arguments...);
  if (width == 88) return launch<T, 88>(arguments...);
  STD_TORCH_CHECK(false, "heads are ", width,
                  " wide, and the CUDA kernel takes 64 and 88; use(\"triton\") takes others");
}

Tensor decode_cross_attention(const Tensor& q, const Tensor& memory, const Tensor& index,
                              const std::optional<Tensor>& key_lengths) {
  check(q, memory, index, key_lengths);
  Tensor out = torch::stable::empty_like(q);
  if (q.numel() == 0 || memory.size(0) == 0) return out;
  const torch::stable::accelerator::DeviceGuard guard(q.get_device_index());
  switch (q.scalar_type()) {
    case ScalarType::Float:
      launch_width<float>(q.size(2), q, memory, index, key_lengths, out);
      break;
    case ScalarType::BFloat16:
      launch_width<__nv_bfloat16>(q.size(2), q, memory, index, key_lengths, out);
      break;
    case ScalarType::Half:
      launch_width<__half>(q.size(2), q, memory, index, key_lengths, out);
      break;
    default:
      STD_TORCH_CHECK(false, "q is ", toString(q.scalar_type()),
                      ", expected float32, bfloat16 or float16; pass q.float()");
  }
  return out;
}

}  // namespace
}  // namespace blip_fast

STABLE_TORCH_LIBRARY_IMPL(blip_fast, CUDA, m) {
  m.impl("decode_cross_attention.cuda", TORCH_BOX(&blip_fast::decode_cross_attention));
}

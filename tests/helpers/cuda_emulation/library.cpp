// The sources of csrc/cuda as a library for the CPU, with their launches and registrations.
//
// Beside them: the shims of torch that only its CUDA build exports, a few switches for the tests,
// and kernels that are wrong on purpose.
#include <cstdlib>
#include <cuda_pipeline.h>

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#define CUDA CPU  // from here on the device that operators are registered for
#include "../../../csrc/cuda/decode_attention.cu"
#undef CUDA

extern "C" {
#define EXPORT __attribute__((visibility("default")))

AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}
AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = nullptr;
  return 0;
}
AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return 0; }
AOTITorchError torch_c10_cuda_check_msg(int32_t error, const char*, const char*, uint32_t, bool,
                                        char** message) {
  if (error != cudaSuccess) *message = strdup("CUDA error: invalid value");
  return 0;
}
void torch_c10_cuda_free_error_msg(char* message) { std::free(message); }

EXPORT void emulate_capability(int major) { emulation::capability = major; }
EXPORT void emulate_turns(bool backwards, bool eager) {
  emulation::backwards = backwards;
  emulation::eager = eager;
}
EXPORT int emulated_cluster() { return emulation::last_cluster; }
}

namespace {

uint8_t* shared() { return static_cast<uint8_t*>(blip_fast::shared_memory()); }

void some_skip_the_barrier() {
  if (threadIdx.x != 7) __syncthreads();
}
void some_are_at_another_barrier() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
void some_lanes_shuffle_alone() {
  if (threadIdx.x % 2) __shfl_xor_sync(0xffffffffu, 1.0f, 2);
}
void one_writes_beyond() {
  if (threadIdx.x == 0) shared()[1024] = 1;
}
void one_leaves_the_cluster() {
  if (blip_fast::cluster_rank() == 0) blip_fast::cluster_sync();
}
void one_reads_of_a_block_that_ended() {
  __syncthreads();
  if (blip_fast::cluster_rank() == (emulation::backwards ? 0 : 1))
    blip_fast::shared_of(shared(), emulation::backwards ? 1 : 0);
}
void a_copy_is_not_waited_for() {
  alignas(16) static uint4 source{1, 2, 3, 4};
  auto* const target = static_cast<uint4*>(blip_fast::shared_memory()) + threadIdx.x;
  __pipeline_memcpy_async(target, &source, 16);
  __pipeline_commit();
  if (target->x != source.x) emulation::fail("the copy has not arrived");
}
void nothing_is_wrong() {
  alignas(16) static uint4 source{1, 2, 3, 4};
  auto* const target = static_cast<uint4*>(blip_fast::shared_memory()) + threadIdx.x;
  __pipeline_memcpy_async(target, &source, 16);
  __pipeline_commit();
  __pipeline_wait_prior(0);
  __syncthreads();
  blip_fast::cluster_sync();
  if (blip_fast::shared_of(target, 1)->w != 4) emulation::fail("the other block has not copied");
  blip_fast::cluster_sync();
}

const std::map<std::string, std::function<void()>> kernels{
#define KERNEL(name) {#name, name}
    KERNEL(some_skip_the_barrier),    KERNEL(some_are_at_another_barrier),
    KERNEL(some_lanes_shuffle_alone), KERNEL(one_writes_beyond),
    KERNEL(one_leaves_the_cluster),   KERNEL(one_reads_of_a_block_that_ended),
    KERNEL(a_copy_is_not_waited_for), KERNEL(nothing_is_wrong)};

}  // namespace

// Runs one of the kernels above in a cluster of two blocks of 64 threads; what was wrong, or "".
extern "C" EXPORT const char* run_kernel(const char* name) {
  static std::string message;
  message.clear();
  try {
    emulation::launch({4, 1, 1}, {64, 1, 1}, 2, 1024, kernels.at(name));
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}

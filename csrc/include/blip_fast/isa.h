// Which instruction set the CPU kernels use: found once, and lowered or raised by tests.
//
// One library serves every processor. A kernel is compiled several times under target attributes
// and picks one copy by `current_isa()`; nothing is compiled for the machine that builds.
#pragma once

#include <atomic>
#include <string_view>

#include <torch/headeronly/util/Exception.h>

namespace blip_fast {

// Ordered: a processor that has one level has all levels below it.
enum class Isa { portable = 0, avx2 = 1, avx512 = 2, avx512bf16 = 3 };

inline constexpr const char* kIsaNames[] = {"portable", "avx2", "avx512", "avx512bf16"};

#if defined(__x86_64__)
// The features that a copy of a kernel may use at each level. `best_isa` asks for all of them.
#define BLIP_FAST_TARGET_AVX2 __attribute__((target("avx2,fma,bmi,bmi2,f16c")))
#define BLIP_FAST_TARGET_AVX512 \
  __attribute__((target("avx2,fma,bmi,bmi2,f16c,avx512f,avx512bw,avx512dq,avx512vl")))
#define BLIP_FAST_TARGET_AVX512BF16 \
  __attribute__((                   \
      target("avx2,fma,bmi,bmi2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#endif

// The highest level that this processor and operating system run.
inline Isa best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512 && __builtin_cpu_supports("avx512bf16")) return Isa::avx512bf16;
  if (avx2 && avx512) return Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::portable;
}

namespace detail {
inline std::atomic<Isa>& isa_slot() {
  static std::atomic<Isa> slot{best_isa()};
  return slot;
}
}  // namespace detail

// The level that kernels use now. Read it once per call, not per row.
inline Isa current_isa() { return detail::isa_slot().load(std::memory_order_relaxed); }

inline std::string_view isa_name(Isa isa) { return kIsaNames[static_cast<int>(isa)]; }

// Makes all kernels use the level called `name`, for the whole process.
inline void set_isa(std::string_view name) {
  for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512bf16}) {
    if (isa_name(isa) != name) continue;
    STD_TORCH_CHECK(isa <= best_isa(), "instruction set '", name,
                    "' was asked for, but this processor reaches only '", isa_name(best_isa()),
                    "'; ask for that or a lower one");
    detail::isa_slot().store(isa, std::memory_order_relaxed);
    return;
  }
  STD_TORCH_CHECK(false, "unknown instruction set '", name,
                  "'; the known ones are 'portable', 'avx2', 'avx512' and 'avx512bf16'");
}

}  // namespace blip_fast

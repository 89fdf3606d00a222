// Which instruction set the CPU kernels use: found once, and lowered or raised by tests.
//
// One library serves every processor. A kernel is compiled several times under target attributes
// and picks one copy by `current_isa()`; nothing is compiled for the machine that builds.
#pragma once

#include <atomic>
#include <string>
#include <string_view>

#include <torch/headeronly/util/Exception.h>

namespace blip_fast {

// Vectors, ordered: a processor that has one level has all levels below it.
enum class Isa { portable = 0, avx2 = 1, avx512 = 2, avx512bf16 = 3 };

// Who multiplies tiles (tile.h) in the rooms that have a path for them.
enum class Tiles { none, amx, emulated };

// What can be asked for by name. The last two are for tests and never chosen otherwise: the paths
// for AMX on emulated tiles, with the vectors that processors with AMX have, or with anyone's.
struct IsaLevel {
  const char* name;
  Isa isa;
  Tiles tiles;
};
inline constexpr IsaLevel kIsaLevels[] = {
    {"portable", Isa::portable, Tiles::none},
    {"avx2", Isa::avx2, Tiles::none},
    {"avx512", Isa::avx512, Tiles::none},
    {"avx512bf16", Isa::avx512bf16, Tiles::none},
    {"amx", Isa::avx512bf16, Tiles::amx},
    {"amx-emulated", Isa::avx512bf16, Tiles::emulated},
    {"amx-portable", Isa::portable, Tiles::emulated},
};

#if defined(__x86_64__)
// The features that a copy of a kernel may use at each level. `best_isa` asks for all of them.
#define BLIP_FAST_TARGET_AVX2 __attribute__((target("avx2,fma,bmi,bmi2,f16c")))
#define BLIP_FAST_TARGET_AVX512 \
  __attribute__((target("avx2,fma,bmi,bmi2,f16c,avx512f,avx512bw,avx512dq,avx512vl")))
#define BLIP_FAST_TARGET_AVX512BF16 \
  __attribute__((                   \
      target("avx2,fma,bmi,bmi2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#endif

// The highest vectors that this processor and operating system run.
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

// Whether the processor has AMX for bfloat16 and bytes, and the system lets this process use it.
// The first call asks for that.
bool amx_granted();

inline bool can_run(const IsaLevel& level) {
  return level.isa <= best_isa() && (level.tiles != Tiles::amx || amx_granted());
}

// The last in the table that runs here and is no emulation.
inline const IsaLevel* best_level() {
  const IsaLevel* best = kIsaLevels;
  for (const IsaLevel& level : kIsaLevels) {
    if (level.tiles != Tiles::emulated && can_run(level)) best = &level;
  }
  return best;
}

namespace detail {
inline std::atomic<const IsaLevel*>& level_slot() {
  static std::atomic<const IsaLevel*> slot{best_level()};
  return slot;
}
}  // namespace detail

// The level that kernels use now. Read it once per call, not per row.
inline const IsaLevel& current_level() {
  return *detail::level_slot().load(std::memory_order_relaxed);
}
inline Isa current_isa() { return current_level().isa; }
inline Tiles current_tiles() { return current_level().tiles; }

// Makes all kernels use the level called `name`, for the whole process.
inline void set_level(std::string_view name) {
  std::string known;
  for (const IsaLevel& level : kIsaLevels) {
    known += (known.empty() ? "'" : ", '") + std::string(level.name) + "'";
    if (level.name != name) continue;
    STD_TORCH_CHECK(can_run(level), "instruction set '", name,
                    "' was asked for, but this processor and its system reach only '",
                    best_level()->name, "'; ask for that or a lower one");
    detail::level_slot().store(&level, std::memory_order_relaxed);
    return;
  }
  STD_TORCH_CHECK(false, "unknown instruction set '", name, "'; the known ones are ", known);
}

}  // namespace blip_fast

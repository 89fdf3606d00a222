// The operators that name and force the instruction set of all CPU kernels, and leave to use AMX.

#include <cstdint>
#include <string>

#include <torch/csrc/stable/library.h>

#include <blip_fast/isa.h>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace blip_fast {
namespace {

#if defined(__x86_64__) && defined(__linux__)
bool processor_has_amx() {
  unsigned a, b, c, d;
  constexpr unsigned kSystemSaves = 1u << 27;                            // OSXSAVE: XGETBV works
  constexpr unsigned kAmx = (1u << 22) | (1u << 24) | (1u << 25);        // bf16, tiles, int8
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & kSystemSaves) == 0) return false;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kAmx) == kAmx;
}

// Whether the operating system saves the tiles and their configuration when it changes threads.
bool system_saves_tiles() {
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr uint32_t kTileState = 3u << 17;
  return (low & kTileState) == kTileState;
}

// Linux keeps no room for 8 KB of tiles until a process asks for it; the leave is for all its
// threads, now and later. Without it the first tile instruction is a SIGILL.
bool leave_is_given() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

void set_cpu_isa(const std::string& isa) { set_level(isa); }

std::string cpu_isa() { return current_level().name; }

}  // namespace

bool amx_granted() {
#if defined(__x86_64__) && defined(__linux__)
  static const bool granted = processor_has_amx() && system_saves_tiles() && leave_is_given();
  return granted;
#else
  return false;
#endif
}

}  // namespace blip_fast

// They take no tensor, so no device chooses them.
STABLE_TORCH_LIBRARY_IMPL(blip_fast, CompositeExplicitAutograd, m) {
  m.impl("set_cpu_isa", TORCH_BOX(&blip_fast::set_cpu_isa));
  m.impl("cpu_isa", TORCH_BOX(&blip_fast::cpu_isa));
}

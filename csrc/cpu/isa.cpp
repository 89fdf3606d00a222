// The operators that name and force the instruction set of all CPU kernels.

#include <string>

#include <torch/csrc/stable/library.h>

#include <blip_fast/isa.h>

namespace blip_fast {
namespace {

void set_cpu_isa(const std::string& isa) { set_isa(isa); }

std::string cpu_isa() { return std::string(isa_name(current_isa())); }

}  // namespace
}  // namespace blip_fast

// They take no tensor, so no device chooses them.
STABLE_TORCH_LIBRARY_IMPL(blip_fast, CompositeExplicitAutograd, m) {
  m.impl("set_cpu_isa", TORCH_BOX(&blip_fast::set_cpu_isa));
  m.impl("cpu_isa", TORCH_BOX(&blip_fast::cpu_isa));
}

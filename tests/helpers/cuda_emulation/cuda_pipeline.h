// Asynchronous copies: they happen when they are waited for and no sooner, or at once.
#pragma once

#include "cuda_runtime.h"

inline void __pipeline_memcpy_async(void* to, const void* from, size_t size, size_t zeros = 0) {
  const auto address = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
  if (address % size != 0) emulation::fail("an asynchronous copy is not aligned to its size");
  const emulation::Copy copy{to, from, size, zeros};
  if (emulation::eager) return copy.run();
  emulation::current->copies.back().push_back(copy);
}

inline void __pipeline_commit() { emulation::current->copies.emplace_back(); }

inline void __pipeline_wait_prior(size_t prior) {
  auto& copies = emulation::current->copies;
  for (; copies.size() > prior + 1; copies.pop_front()) {
    for (const emulation::Copy& copy : copies.front()) copy.run();
  }
}

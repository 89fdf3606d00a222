// Asynchronous copies: they happen when they are waited for, and no sooner.
#pragma once

#include "cuda_runtime.h"

inline void __pipeline_memcpy_async(void* to, const void* from, size_t size, size_t zeros = 0) {
  const auto address = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
  if (address % size != 0) emulation::fail("an asynchronous copy is not aligned to its size");
  emulation::current->copies.back().push_back({to, from, size, zeros});
}

inline void __pipeline_commit() { emulation::current->copies.emplace_back(); }

inline void __pipeline_wait_prior(size_t prior) {
  auto& copies = emulation::current->copies;
  for (; copies.size() > prior + 1; copies.pop_front()) {
    for (const emulation::Copy& copy : copies.front()) {
      std::memcpy(copy.to, copy.from, copy.size - copy.zeros);
      std::memset(static_cast<uint8_t*>(copy.to) + copy.size - copy.zeros, 0, copy.zeros);
    }
  }
}

// csrc/include/blip_fast/matrix.cuh, answered by the fibers: this file is found first.
#pragma once

#include <array>
#include <bit>

#include <cuda_runtime.h>

namespace blip_fast {

inline void load_rows(uint32_t (&a)[4], const void* row, bool turn, Where where) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) emulation::fail("a row is not aligned to 16");
  const auto& rows =
      emulation::meet_warp("load_matrices", 0xffffffffu, reinterpret_cast<uintptr_t>(row), where);
  const int lane = emulation::current->thread % emulation::kLanes, g = lane / 4, t = lane % 4;
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t pair[2];
    for (int i = 0; i < 2; ++i) {
      const int r = turn ? 2 * t + i : g, column = turn ? g : 2 * t + i;
      pair[i] = reinterpret_cast<const uint16_t*>(rows[8 * matrix + r])[column];
    }
    a[matrix] = pair[0] | uint32_t{pair[1]} << 16;
  }
  // No lane goes on, and writes there, before all have read.
  emulation::meet_warp("load_matrices", 0xffffffffu, 0, where);
}

inline void load_matrices(uint32_t (&a)[4], const void* row, Where where = Where::current()) {
  load_rows(a, row, false, where);
}

inline void load_turned_matrices(uint32_t (&a)[4], const void* row,
                                 Where where = Where::current()) {
  load_rows(a, row, true, where);
}

inline uint32_t turned(uint32_t matrix, Where where = Where::current()) {
  const auto& words = emulation::meet_warp("turned", 0xffffffffu, matrix, where);
  const int lane = emulation::current->thread % emulation::kLanes, g = lane / 4, t = lane % 4;
  uint32_t result = 0;
  for (int i = 0; i < 2; ++i) {  // row 2 t + i, column g
    const uint64_t word = words[4 * (2 * t + i) + g / 2];
    result |= (word >> 16 * (g % 2) & 0xffffu) << 16 * i;
  }
  return result;
}

template <class T>
void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
              Where where = Where::current()) {
  const auto both = [](uint32_t low, uint32_t high) { return low | uint64_t{high} << 32; };
  const auto number = [](uint64_t words, int place) {
    return static_cast<float>(std::bit_cast<T>(static_cast<uint16_t>(words >> 16 * place)));
  };
  const auto meet = [&](uint64_t word) {
    return emulation::meet_warp("multiply", 0xffffffffu, word, where);  // a copy
  };
  const auto left = meet(both(a[0], a[1])), right = meet(both(a[2], a[3]));
  const auto turned_b = meet(both(b[0], b[1]));
  const int lane = emulation::current->thread % emulation::kLanes, g = lane / 4, t = lane % 4;
  for (int k = 0; k < 16; ++k) {
    const auto& half = k < 8 ? left : right;  // of a: both rows, columns k % 8
    const int holder = k % 8 / 2;
    for (int i = 0; i < 4; ++i) {
      const int lower = i / 2, column = 2 * t + i % 2;
      const float x = number(half[4 * g + holder], 2 * lower + k % 2);
      const float y = number(turned_b[4 * column + holder], 2 * (k / 8) + k % 2);
      c[i] += x * y;
    }
  }
}

}  // namespace blip_fast

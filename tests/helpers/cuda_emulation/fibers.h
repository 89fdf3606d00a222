// Blocks and clusters of a CUDA kernel on one thread of a CPU: each CUDA thread is a fiber.
//
// A fiber runs until it meets others, at a barrier or a shuffle, and then the next one runs. What a
// GPU would forgive or hide is an error here: threads that meet at different lines or not at all,
// writes beyond shared memory, copies that were not waited for (they happen no sooner, or at once,
// as a test wishes), shared memory that is read before it is written (it holds NaN), or after its
// block has ended.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <source_location>
#include <stdexcept>
#include <string>
#include <vector>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

// Of the fiber that runs.
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr int kLanes = 32;
constexpr size_t kStack = 128 << 10, kGuard = 256;
constexpr int kUnwritten = 0xff, kGuardByte = 0xa5;

// What a fiber called to meet others, and where.
struct Call {
  const char* what = "";
  std::source_location where;
  bool operator==(const Call& other) const {
    return what == other.what && where.line() == other.where.line();
  }
  std::string name() const {
    return std::string(what) + " in " + where.function_name() + ", line " +
           std::to_string(where.line());
  }
};

// A place where `expected` fibers meet, again and again, and exchange a word each.
struct Meeting {
  int expected, arrived = 0;
  int64_t round = 0;
  Call call;                         // of the first to arrive
  std::vector<uint64_t> words[2];    // of this round, and of the last, which some still read
  explicit Meeting(int size) : expected(size) {
    for (auto& w : words) w.resize(size);
  }
};

struct Block {
  std::vector<uint8_t> bytes;  // guard, shared memory, guard
  std::vector<Meeting> warps;
  Meeting barrier;
  int running;
  Block(int threads, size_t shared)
      : bytes(shared + 2 * kGuard, kGuardByte),
        warps(threads / kLanes, Meeting(kLanes)),
        barrier(threads),
        running(threads) {
    std::memset(this->shared(), kUnwritten, shared);
  }
  // Vectors of bytes are aligned to 16, and so is the guard.
  uint8_t* shared() { return bytes.data() + kGuard; }
  size_t size() const { return bytes.size() - 2 * kGuard; }
  bool guards_are_whole() const {
    for (size_t i = 0; i < kGuard; ++i) {
      if (bytes[i] != kGuardByte || bytes[bytes.size() - 1 - i] != kGuardByte) return false;
    }
    return true;
  }
};

struct Copy {
  void* to;
  const void* from;
  size_t size, zeros;
  void run() const {
    std::memcpy(to, from, size - zeros);
    std::memset(static_cast<uint8_t*>(to) + size - zeros, 0, zeros);
  }
};

struct Fiber {
  ucontext_t start;  // as it was made; from then on `place` says where it is
  jmp_buf place;
  bool started = false;
  Block* block;
  unsigned thread, block_number;
  Meeting* waits = nullptr;
  int64_t round = 0;
  bool ended = false;
  Call call;                             // where it waits
  std::deque<std::vector<Copy>> copies;  // committed ones; the last is still open
};

struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks;
  Meeting barrier;
  explicit Cluster(int threads) : barrier(threads) {}
};

inline ucontext_t before_start;
inline jmp_buf scheduler;
inline Fiber* current;
inline Cluster* cluster;
inline std::string failure;
inline std::function<void()> body;
// Fibers take turns from the first on or from the last; a result that depends on it has a race.
inline bool backwards = false;
// Copies happen when they are asked for, and not when they are waited for: a GPU may do either.
inline bool eager = false;

// Switching by _longjmp and not by swapcontext, which costs a system call.
inline void leave_fiber() {
  if (_setjmp(current->place) == 0) _longjmp(scheduler, 1);
}

// Ends the launch from within a fiber, which is never resumed.
[[noreturn]] inline void fail(const std::string& message) {
  if (failure.empty()) {
    failure = "block " + std::to_string(current->block_number) + ", thread " +
              std::to_string(current->thread) + ": " + message;
  }
  leave_fiber();
  __builtin_unreachable();
}

// Waits until all have come; the words that they brought are in the result.
inline const std::vector<uint64_t>& meet(Meeting& meeting, const Call& call, int place,
                                         uint64_t word) {
  if (meeting.arrived == 0) meeting.call = call;
  if (!(meeting.call == call)) {
    fail("is at " + call.name() + "; others are at " + meeting.call.name());
  }
  const int64_t round = meeting.round;
  meeting.words[round % 2][place] = word;
  if (++meeting.arrived == meeting.expected) {
    meeting.arrived = 0;
    ++meeting.round;
  } else {
    current->waits = &meeting;
    current->round = round;
    current->call = call;
    leave_fiber();
    current->waits = nullptr;
  }
  return meeting.words[round % 2];
}

inline const std::vector<uint64_t>& meet_warp(const char* what, unsigned mask, uint64_t word,
                                              const std::source_location& where) {
  if (mask != 0xffffffffu) fail(std::string(what) + " of a part of a warp is not emulated");
  Meeting& warp = current->block->warps[current->thread / kLanes];
  return meet(warp, {what, where}, current->thread % kLanes, word);
}

inline void begin_fiber() {
  body();
  current->ended = true;
  Block& block = *current->block;
  // What others still read of a block that has ended is NaN.
  if (--block.running == 0) std::memset(block.shared(), kUnwritten, block.size());
  leave_fiber();
}

inline void resume(Fiber& fiber) {
  current = &fiber;
  threadIdx = {fiber.thread, 0, 0};
  blockIdx = {fiber.block_number, 0, 0};
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.place, 1);
  fiber.started = true;
  swapcontext(&before_start, &fiber.start);
}

// Runs one cluster to its end, or throws what was wrong.
inline void run_cluster(unsigned first_block, int blocks, int threads, size_t shared) {
  static std::vector<std::unique_ptr<uint8_t[]>> stacks;
  Cluster all(blocks * threads);
  cluster = &all;
  std::vector<Fiber> fibers(static_cast<size_t>(blocks) * threads);
  for (int b = 0; b < blocks; ++b) all.blocks.push_back(std::make_unique<Block>(threads, shared));
  for (size_t i = 0; i < fibers.size(); ++i) {
    if (i >= stacks.size()) stacks.emplace_back(new uint8_t[kStack]);
    Fiber& fiber = fibers[i];
    fiber.block = all.blocks[i / threads].get();
    fiber.thread = i % threads;
    fiber.block_number = first_block + i / threads;
    fiber.copies.emplace_back();
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = stacks[i].get();
    fiber.start.uc_stack.ss_size = kStack;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, begin_fiber, 0);
  }
  for (bool moved = true; moved;) {
    moved = false;
    for (size_t i = 0; i < fibers.size(); ++i) {
      Fiber& fiber = fibers[backwards ? fibers.size() - 1 - i : i];
      if (fiber.ended || (fiber.waits != nullptr && fiber.waits->round == fiber.round)) continue;
      resume(fiber);
      if (!failure.empty()) throw std::runtime_error(failure);
      moved = true;
    }
  }
  for (const Fiber& fiber : fibers) {
    if (!fiber.ended) throw std::runtime_error("some wait for ever at " + fiber.call.name());
  }
  for (const auto& block : all.blocks) {
    if (!block->guards_are_whole()) throw std::runtime_error("wrote beyond shared memory");
  }
}

// Runs `kernel` as a grid of blocks in clusters.
inline void launch(dim3 grid, dim3 block, int cluster_blocks, size_t shared,
                   const std::function<void()>& kernel) {
  if (block.x % kLanes != 0 || grid.x % cluster_blocks != 0) {
    throw std::runtime_error("blocks are not whole warps, or clusters not whole");
  }
  gridDim = grid;
  blockDim = block;
  body = kernel;
  failure.clear();
  for (unsigned first = 0; first < grid.x; first += cluster_blocks) {
    run_cluster(first, cluster_blocks, block.x, shared);
  }
}

}  // namespace emulation

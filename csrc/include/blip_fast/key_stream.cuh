// Keys and values of one image and head on their way from global memory to the threads of a block.
//
// A key of 64 16-bit numbers is 8 pieces of 16 bytes, and 8 lanes take one each; a warp reads 4
// keys at once, a block 16. Each thread copies the very pieces that it will compute on, into
// places of its own in shared memory: the copies run ahead of the sums by a whole ring of stages,
// and no thread ever waits for another.
#pragma once

#include <bit>

#include <cuda_pipeline.h>

#include <blip_fast/softmax_parts.cuh>

namespace blip_fast {

// Keys of one thread that are computed on at once: they share one look for the largest score.
constexpr int kSteps = 2;
// cuda_pipeline.h waits for at most 8 copies before the last, so more stages would be no use.
constexpr int kMostStages = 8;
// 160 keys of 64 16-bit numbers are 40 KB: a multiprocessor of an H200 holds 4 blocks, which have
// 160 KB under way, and it needs some 30 KB (36 bytes a ns, a latency of 800 ns). Not measured yet.
constexpr int kRingKeys = 160;

// What a thread loads at once.
template <class T>
struct alignas(16) Piece {
  T numbers[16 / sizeof(T)];
};

template <class T, int kWidth>
struct KeyShape {
  static_assert(kWidth * sizeof(T) % sizeof(Piece<T>) == 0);
  static constexpr int kPiece = sizeof(Piece<T>) / sizeof(T);         // numbers of a piece
  static constexpr int kPieces = kWidth / kPiece;                     // of a key
  static constexpr int kLanes = std::bit_ceil(unsigned{kPieces});     // of a key; some may be idle
  static constexpr int kGroups = kWarp / kLanes;                      // keys of a warp at once
  static constexpr int kStageKeys = kSteps * kWarps * kGroups;        // keys of a block's stage
  static constexpr int kStages = kRingKeys / kStageKeys < kMostStages ? kRingKeys / kStageKeys
                                                                      : kMostStages;
  static constexpr int kKeys = kStages * kStageKeys;                  // in shared memory at once
  static constexpr int kSlots = kStages * kSteps * 2;                 // pieces of a thread
};

template <class T, int kWidth>
struct KeyStream {
  using Shape = KeyShape<T, kWidth>;

  const T* keys;         // this thread's piece of the memory's first key
  int64_t token_stride;  // from one key to the next
  int64_t to_value;      // from a key to its value
  int begin, end;        // the keys of this block
  bool aligned;          // keys and strides are multiples of 16 bytes
  bool idle;             // this thread's piece lies beyond the key
  Piece<T>* slots;       // [kSlots][kThreads] of this block, seen from this thread

  __device__ int stages() const {
    return (end - begin + Shape::kStageKeys - 1) / Shape::kStageKeys;
  }

  // Whether all keys have places of their own, so that they can be gone through again.
  __device__ bool all_fit() const { return stages() <= Shape::kStages; }

  __device__ int key(int stage, int step) const {
    const int group = threadIdx.x / Shape::kLanes;
    return begin + (stage * kSteps + step) * kWarps * Shape::kGroups + group;
  }

  // The piece of a key, or of its value, once it has arrived, and 0 where there is none.
  __device__ void read(float (&numbers)[Shape::kPiece], int stage, int step, bool value) const {
    const Piece<T> piece = *slot(stage, step, value);
#pragma unroll
    for (int e = 0; e < Shape::kPiece; ++e) numbers[e] = static_cast<float>(piece.numbers[e]);
  }

  // Asks for the pieces of a stage; one beyond the last counts as a stage, too, for `wait`.
  __device__ void request(int stage) const {
    if (stage < stages()) {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const bool known = !idle && key(stage, step) < end;
        const T* const source = keys + (known ? key(stage, step) : begin) * token_stride;
        copy(slot(stage, step, false), source, known);
        copy(slot(stage, step, true), source + to_value, known);
      }
    }
    __pipeline_commit();
  }

  __device__ void request_first() const {
    for (int stage = 0; stage < Shape::kStages; ++stage) request(stage);
  }

  // Until the next stage has arrived, where kStages of them were asked for ahead.
  __device__ void wait() const { __pipeline_wait_prior(Shape::kStages - 1); }

 private:
  __device__ Piece<T>* slot(int stage, int step, bool value) const {
    return slots + (((stage % Shape::kStages) * kSteps + step) * 2 + value) * kThreads;
  }

  // Numbers that are not `known` are never read, whatever lies there, and become 0.
  __device__ void copy(Piece<T>* slot, const T* source, bool known) const {
    if (aligned) {
      __pipeline_memcpy_async(slot, source, sizeof(*slot), known ? 0 : sizeof(*slot));
      return;
    }
    for (int e = 0; e < Shape::kPiece; ++e) {
      slot->numbers[e] = known ? source[e] : static_cast<T>(0.0f);
    }
  }
};

}  // namespace blip_fast

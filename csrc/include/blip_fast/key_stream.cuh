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

// What a thread loads at once.
template <class T>
struct alignas(16) Piece {
  T numbers[16 / sizeof(T)];
};

// Copies a piece, or makes it 0 and reads nothing, whatever lies there. Copies of aligned ones are
// there once they have been waited for, others at once.
template <class T>
__device__ void copy_piece(Piece<T>* slot, const T* source, bool known, bool aligned) {
  if (aligned) {
    __pipeline_memcpy_async(slot, source, sizeof(*slot), known ? 0 : sizeof(*slot));
    return;
  }
  for (T& number : slot->numbers) number = known ? *source++ : static_cast<T>(0.0f);
}

// How a block of threads shares keys, of which it holds about `kRingKeys` in shared memory at once.
template <class T, int kWidth, int kRingKeys>
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

// Where keys lie that follow each other.
struct InOrder {
  int64_t stride;
  __device__ int64_t operator()(int key) const { return key * stride; }
};

// Where keys lie of which each has a row of its own.
struct InRows {
  const int64_t* rows;
  int64_t row_stride, stride;
  __device__ int64_t operator()(int key) const { return rows[key] * row_stride + key * stride; }
};

// Strides are in numbers.
template <class T, class Shape_, class PlaceOf>
struct KeyStream {
  using Shape = Shape_;
  static constexpr int kPiece = Shape::kPiece, kKeys = Shape::kKeys;
  struct Ring {
    Piece<T> slots[Shape::kSlots][kThreads];
  };

  const T* keys;     // this thread's piece of key 0, and
  PlaceOf place_of;  // of others from there
  int64_t to_value;  // from a key to its value
  int begin, end;    // the keys of this block
  bool aligned;      // keys and strides are multiples of 16 bytes
  Ring* ring;

  // This thread's piece of a key; beyond the last, the thread has nothing to do.
  __device__ static int piece() { return threadIdx.x % Shape::kLanes; }
  __device__ static bool is_idle() { return piece() >= Shape::kPieces; }

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
        const bool known = !is_idle() && key(stage, step) < end;
        const T* const source = keys + place_of(known ? key(stage, step) : begin);
        copy_piece(slot(stage, step, false), source, known, aligned);
        copy_piece(slot(stage, step, true), source + to_value, known, aligned);
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
    const int place = ((stage % Shape::kStages) * kSteps + step) * 2 + value;
    return &ring->slots[place][threadIdx.x];
  }
};

}  // namespace blip_fast

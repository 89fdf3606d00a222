// Attention of up to 8 queries to tiles of 16 keys, by matrix units: 16-bit numbers, heads of 64.
//
// Keys are the rows of the first product and queries its columns, so that few queries waste
// nothing: scores [16 keys, 8 queries], and results [64, 8 queries]. A warp copies tiles of its own
// and has a ring of them; warps never wait for each other.
#pragma once

#include <cuda_pipeline.h>

#include <blip_fast/key_attention.cuh>
#include <blip_fast/matrix.cuh>

namespace blip_fast {

constexpr int kTile = 16;

template <class T, int kTileStages>
struct TileStream {
  static constexpr int kWidth = 64, kPiece = 8, kPieces = kWidth / kPiece;
  static constexpr int kStages = kTileStages, kStageKeys = kWarps * kTile;
  static constexpr int kKeys = kStages * kStageKeys;
  struct Ring {
    Piece<T> slots[kWarps][kStages][2][kTile][kPieces];  // keys, then values
  };

  const T* keys;  // this thread's piece of key 0
  InOrder place_of;
  int64_t to_value;  // from a key to its value
  int begin, end;    // the keys of this block
  bool aligned;      // keys and strides are multiples of 16 bytes
  Ring* ring;

  __device__ static int piece() { return threadIdx.x % kPieces; }
  __device__ int stages() const { return (end - begin + kStageKeys - 1) / kStageKeys; }
  __device__ bool all_fit() const { return stages() <= kStages; }

  // The first key of this warp's tile.
  __device__ int tile(int stage) const {
    return begin + (stage * kWarps + static_cast<int>(threadIdx.x) / kWarp) * kTile;
  }

  // A piece of a key, or of its value. Matrices are loaded 8 rows at a time, which would all lie in
  // the same banks of shared memory, were they not turned against each other.
  __device__ Piece<T>* slot(int stage, bool value, int key, int piece) const {
    const int swizzled = piece ^ (key % kPieces);
    return &ring->slots[threadIdx.x / kWarp][stage % kStages][value][key][swizzled];
  }

  __device__ void request(int stage) const {
    if (stage < stages()) {
#pragma unroll
      for (int first = 0; first < kTile; first += kWarp / kPieces) {
        const int row = first + threadIdx.x % kWarp / kPieces, key = tile(stage) + row;
        const T* const source = keys + place_of(key < end ? key : begin);
        copy_piece(slot(stage, false, row, piece()), source, key < end, aligned);
        copy_piece(slot(stage, true, row, piece()), source + to_value, key < end, aligned);
      }
    }
    __pipeline_commit();
  }

  __device__ void request_first() const {
    for (int stage = 0; stage < kStages; ++stage) request(stage);
  }

  // Until the warp's next tile has arrived, where kStages of them were asked for ahead.
  __device__ void wait() const {
    __pipeline_wait_prior(kStages - 1);
    __syncwarp();
  }
};

template <class T, class Stream>
struct TileAttention {
  static constexpr int kQueries = 8, kWidth = Stream::kWidth, kDepth = 16;

  int queries;                     // of kQueries
  float scale;                     // of scores
  uint32_t q[kWidth / kDepth][2];  // turned: columns are this lane's query
  float top[2], total[2];          // of the two queries of this lane's scores
  float sum[kWidth / kDepth][4];   // [16, 8 queries] each

  __device__ static int row() { return threadIdx.x % kWarp / 4; }
  __device__ static int column() { return threadIdx.x % 4 * 2; }

  __device__ void begin(const Queries<T>& all, const int* members, int number, int head) {
    queries = number;
    scale = all.scale;
    const bool known = row() < queries;
    const int64_t place = known ? all.row(members[row()], head) * kWidth + column() : 0;
#pragma unroll
    for (int i = 0; i < kWidth / kDepth; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const T* const from = all.q + place + i * kDepth + half * kDepth / 2;
        q[i][half] = known ? pair(from[0], from[1]) : 0;
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[i][e] = 0.0f;
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) top[j] = minus_infinity(), total[j] = 0.0f;
  }

  __device__ void attend_to_all(const Stream& stream) {
    for (int stage = 0; stage < stream.stages(); ++stage) {
      stream.wait();
      attend(stream, stage);
      __syncwarp();  // all lanes have read the tile whose place the next takes
      stream.request(stage + Stream::kStages);
    }
  }

  // Adds up the lanes that have the same queries.
  template <class WarpPart>
  __device__ void end(WarpPart& part) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      for (int bit = 4; bit < kWarp; bit *= 2) {
        total[j] += __shfl_xor_sync(kAllLanes, total[j], bit);
      }
      const int query = column() + j;
      if (row() == 0) part.top[query] = top[j], part.total[query] = total[j];
#pragma unroll
      for (int i = 0; i < kWidth / kDepth; ++i) {
        part.sum[query][i * kDepth + row()] = sum[i][j];
        part.sum[query][i * kDepth + row() + 8] = sum[i][j + 2];
      }
    }
  }

 private:
  __device__ static uint32_t pair(T low, T high) {
    union {
      T numbers[2];
      uint32_t bits;
    } both{{low, high}};
    return both.bits;
  }

  __device__ void attend(const Stream& stream, int stage) {
    const int lane = threadIdx.x % kWarp, tile = stream.tile(stage);
    float scores[4]{};  // keys row() and row() + 8, two queries each
#pragma unroll
    for (int i = 0; i < kWidth / kDepth; ++i) {
      uint32_t keys[4];
      load_matrices(keys, stream.slot(stage, false, lane % 16, 2 * i + lane / 16));
      multiply<T>(scores, keys, q[i]);
    }
    T weights[4];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float most = top[j];
#pragma unroll
      for (int e = j; e < 4; e += 2) {
        const int key = tile + row() + e / 2 * 8;
        scores[e] = key < stream.end ? scores[e] * scale : minus_infinity();
        most = fmaxf(most, scores[e]);
      }
#pragma unroll
      for (int bit = 4; bit < kWarp; bit *= 2) {
        most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, bit));
      }
      const float factor = exp2f(top[j] - finite(most));
      top[j] = most;
      total[j] *= factor;
#pragma unroll
      for (int e = j; e < 4; e += 2) {
        weights[e] = static_cast<T>(exp2f(scores[e] - finite(most)));
        total[j] += static_cast<float>(weights[e]);  // what values are multiplied by
#pragma unroll
        for (int i = 0; i < kWidth / kDepth; ++i) sum[i][e] *= factor;
      }
    }
    const uint32_t turned_weights[2] = {turned(pair(weights[0], weights[1])),
                                        turned(pair(weights[2], weights[3]))};
#pragma unroll
    for (int i = 0; i < kWidth / kDepth; ++i) {
      uint32_t values[4];
      const int key = lane % 8 + lane / 16 * 8;
      load_turned_matrices(values, stream.slot(stage, true, key, 2 * i + lane / 8 % 2));
      multiply<T>(sum[i], values, turned_weights);
    }
  }
};

}  // namespace blip_fast

// Attention of a few queries to the keys of a stream, in the registers of a block's threads.
#pragma once

#include <blip_fast/key_stream.cuh>
#include <blip_fast/softmax_parts.cuh>

namespace blip_fast {

// One query a sequence, and where results go.
template <class T>
struct Queries {
  const T* q;  // [B, H, width]
  T* out;      // as q
  int sequences, heads;
  float scale;  // of scores, which are of base 2

  // The place of a head of a sequence.
  __device__ int64_t row(int sequence, int head) const {
    return static_cast<int64_t>(sequence) * heads + head;
  }

  // Where no key counts, the result is 0.
  template <int kWidth>
  __device__ void write(int sequence, int head, int column, float total, float sum) const {
    const float result = total == 0.0f ? 0.0f : sum / total;
    out[row(sequence, head) * kWidth + column] = static_cast<T>(result);
  }
};

// The softmax of one thread for a few queries: its group's keys, its own piece of their values.
template <class T, int kWidth, int kQueries_, class Stream>
struct Attention {
  static constexpr int kQueries = kQueries_;
  using Shape = typename Stream::Shape;

  int queries;  // of kQueries
  float q[kQueries][Shape::kPiece];
  float top[kQueries], total[kQueries], sum[kQueries][Shape::kPiece];

  // For `number` sequences, the members.
  __device__ void begin(const Queries<T>& all, const int* members, int number, int head) {
    queries = number;
#pragma unroll
    for (int i = 0; i < kQueries; ++i) {
      const bool known = i < queries && !Stream::is_idle();
      const int64_t row = known ? all.row(members[i], head) : 0;
      top[i] = minus_infinity();
      total[i] = 0.0f;
#pragma unroll
      for (int e = 0; e < Shape::kPiece; ++e) {
        const int64_t place = row * kWidth + Stream::piece() * Shape::kPiece + e;
        q[i][e] = known ? static_cast<float>(all.q[place]) * all.scale : 0.0f;
        sum[i][e] = 0.0f;
      }
    }
  }

  // To all keys of a stream whose first stages were asked for.
  __device__ void attend_to_all(const Stream& stream) {
    for (int stage = 0; stage < stream.stages(); ++stage) {
      stream.wait();
      attend(stream, stage);
      stream.request(stage + Shape::kStages);
    }
  }

  // To the keys of a stage that has arrived.
  __device__ void attend(const Stream& stream, int stage) {
    float weights[kQueries][kSteps], pieces[kSteps][Shape::kPiece];
    for_steps([&](int step) { stream.read(pieces[step], stage, step, false); });
    for_queries([&](int i) {
      float most = top[i];
      for_steps([&](int step) {
        float score = 0.0f;
#pragma unroll
        for (int e = 0; e < Shape::kPiece; ++e) score += q[i][e] * pieces[step][e];
        score = over_lanes<1, Shape::kLanes>(score, [](float a, float b) { return a + b; });
        weights[i][step] = stream.key(stage, step) < stream.end ? score : minus_infinity();
        most = fmaxf(most, weights[i][step]);
      });
      shrink(i, most);
      for_steps([&](int step) {
        weights[i][step] = exp2f(weights[i][step] - finite(most));
        total[i] += weights[i][step];
      });
    });
    for_steps([&](int step) { stream.read(pieces[step], stage, step, true); });
    for_queries([&](int i) {
      for_steps([&](int step) {
#pragma unroll
        for (int e = 0; e < Shape::kPiece; ++e) sum[i][e] += weights[i][step] * pieces[step][e];
      });
    });
  }

  // Adds up the groups of the warp.
  __device__ void end(Part<kWidth, kQueries>& part) {
    const auto largest = [](float a, float b) { return fmaxf(a, b); };
    const auto both = [](float a, float b) { return a + b; };
    const int lane = threadIdx.x % kWarp;
    const bool writes = lane < Shape::kLanes && !Stream::is_idle();
    for_queries([&](int i) {
      shrink(i, over_lanes<Shape::kLanes, kWarp>(top[i], largest));
      total[i] = over_lanes<Shape::kLanes, kWarp>(total[i], both);
      if (lane == 0) part.top[i] = top[i], part.total[i] = total[i];
#pragma unroll
      for (int e = 0; e < Shape::kPiece; ++e) {
        sum[i][e] = over_lanes<Shape::kLanes, kWarp>(sum[i][e], both);
        if (writes) part.sum[i][Stream::piece() * Shape::kPiece + e] = sum[i][e];
      }
    });
  }

 private:
  // Unrolled, because registers have no index; all lanes of a warp have the same queries.
  template <class Body>
  __device__ void for_queries(const Body& body) {
#pragma unroll
    for (int i = 0; i < kQueries; ++i) {
      if (i < queries) body(i);
    }
  }

  template <class Body>
  __device__ static void for_steps(const Body& body) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) body(step);
  }

  // Over lanes that differ in the bits from kFrom to below kTo; all get the result.
  template <int kFrom, int kTo, class Both>
  __device__ static float over_lanes(float value, const Both& both) {
#pragma unroll
    for (int bit = kFrom; bit < kTo; bit *= 2) {
      value = both(value, __shfl_xor_sync(kAllLanes, value, bit));
    }
    return value;
  }

  __device__ void shrink(int i, float most) {
    const float factor = exp2f(top[i] - finite(most));
    top[i] = most;
    total[i] *= factor;
#pragma unroll
    for (int e = 0; e < Shape::kPiece; ++e) sum[i][e] *= factor;
  }
};

}  // namespace blip_fast

// Residual addition and LayerNorm of a row in one pass over memory.
//
// x, residual and both outputs cross memory once: the rounded sum is kept as float32 in a scratch
// row, which stays in the L1 cache, while its mean and variance are taken. Per element of 16 bits
// that moves 8 bytes, where an addition followed by a LayerNorm moves 10 and widens the sum anew.

#include <algorithm>
#include <cmath>
#include <memory>
#include <new>
#include <optional>
#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <blip_fast/check.h>
#include <blip_fast/isa.h>
#include <blip_fast/vec.h>

namespace blip_fast {
namespace {

// Elements that are summed in float32 lanes before the result goes into a double.
constexpr int64_t kSumBlock = 1024;
// A thread gets at least this many elements (some 10 us of work), or waking it costs more.
constexpr int64_t kGrain = 32768;

template <class T>
struct Job {
  const T* x;           // [rows, n]
  const T* residual;    // [rows, n] or null
  const void* weight;   // [n], float32 if `float_affine`, else T
  const void* bias;     // [n], likewise
  T* sum;               // [rows, n] or null
  T* out;               // [rows, n]
  int64_t n;
  double eps;
  bool float_affine;
};

// Float32 rows of `stride` elements on cache lines, private to one thread.
class Scratch {
 public:
  Scratch(int64_t rows, int64_t stride)
      : stride_(stride), data_(new (std::align_val_t{64}) float[rows * stride]) {}
  float* row(int64_t index) { return data_.get() + index * stride_; }

 private:
  struct Free {
    void operator()(float* data) const { ::operator delete[](data, std::align_val_t{64}); }
  };
  int64_t stride_;
  std::unique_ptr<float[], Free> data_;
};

// Calls body(first, count) for pieces of 2W elements from `begin` to `end`; the last may be less.
template <int W, class Body>
BLIP_FAST_INLINE void for_pieces(int64_t begin, int64_t end, Body body) {
  int64_t i = begin;
  for (; i + 2 * W <= end; i += 2 * W) body(i, 2 * W);
  if (i < end) body(i, end - i);
}

// The sum over n elements of what body(first, count) returns for each piece, a Pair.
template <int W, class Body>
BLIP_FAST_INLINE double sum_pieces(int64_t n, Body body) {
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kSumBlock) {
    f32<W> a{}, b{};
    for_pieces<W>(begin, std::min(n, begin + kSumBlock),
                  [&](int64_t i, int64_t count) __attribute__((always_inline)) {
                    const Pair<W> v = body(i, count);
                    a += v.a;
                    b += v.b;
                  });
    total += reduce_add<W>(a + b);
  }
  return total;
}

// Widens a weight or bias into the lane order of T's rows, so that no row has to.
template <int W, class T>
BLIP_FAST_INLINE void widen_affine(const void* from, bool is_float, float* to, int64_t n) {
  for_pieces<W>(0, n, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    if (!is_float) {
      const auto bits = load_bits<W>(static_cast<const T*>(from) + i, count);
      store_pair<W>(to + i, Storage<W, T>::widen(bits));
      return;
    }
    for (int lane = 0; lane < 2 * W; ++lane) {
      const int element = Storage<W, T>::element(lane);
      to[i + lane] = element < count ? quiet(static_cast<const float*>(from)[i + element]) : 0.0f;
    }
  });
}

// Puts x + residual, rounded to T, into `row` as float32 (and into `sum`); returns its total.
template <int W, class T, bool kAdd>
BLIP_FAST_INLINE double read_row(const T* x, const T* residual, T* sum, float* row, int64_t n) {
  using S = Storage<W, T>;
  return sum_pieces<W>(n, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    auto bits = load_bits<W>(x + i, count);
    Pair<W> v = S::widen(bits);
    if constexpr (kAdd) {
      const Pair<W> r = S::widen(load_bits<W>(residual + i, count));
      bits = S::narrow({v.a + r.a, v.b + r.b});
      if (sum != nullptr) store_bits<W, T>(sum + i, bits, count);
      v = S::widen(bits);
    }
    store_pair<W>(row + i, v);
    return v;
  });
}

// Fills the lanes past the end of the row with its mean, so that they add nothing to the variance.
template <int W, class T>
BLIP_FAST_INLINE void pad_row(float* row, int64_t n, float mean) {
  const int64_t rest = n % (2 * W);
  if (rest == 0) return;
  for (int lane = 0; lane < 2 * W; ++lane) {
    if (Storage<W, T>::element(lane) >= rest) row[n - rest + lane] = mean;
  }
}

template <int W>
BLIP_FAST_INLINE double squared_deviations(const float* row, int64_t n, float mean) {
  return sum_pieces<W>(n, [&](int64_t i, int64_t) __attribute__((always_inline)) {
    const Pair<W> v = load_pair<W>(row + i);
    const Pair<W> d{v.a - mean, v.b - mean};
    return Pair<W>{d.a * d.a, d.b * d.b};
  });
}

template <int W, class T>
BLIP_FAST_INLINE void write_row(const float* row, const float* weight, const float* bias, T* out,
                                int64_t n, float mean, float rstd) {
  for_pieces<W>(0, n, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    const Pair<W> v = load_pair<W>(row + i);
    const Pair<W> w = load_pair<W>(weight + i);
    const Pair<W> b = load_pair<W>(bias + i);
    const auto bits = Storage<W, T>::narrow(
        {(v.a - mean) * rstd * w.a + b.a, (v.b - mean) * rstd * w.b + b.b});
    store_bits<W, T>(out + i, bits, count);
  });
}

template <int W, class T, bool kAdd>
BLIP_FAST_INLINE void run_rows(const Job<T>& job, int64_t first, int64_t last) {
  const int64_t n = job.n;
  Scratch scratch(3, (n + 2 * W - 1) / (2 * W) * (2 * W));
  float* const row = scratch.row(0);
  float* const weight = scratch.row(1);
  float* const bias = scratch.row(2);
  widen_affine<W, T>(job.weight, job.float_affine, weight, n);
  widen_affine<W, T>(job.bias, job.float_affine, bias, n);
  for (int64_t r = first; r < last; ++r) {
    const T* const residual = kAdd ? job.residual + r * n : nullptr;
    T* const sum = job.sum != nullptr ? job.sum + r * n : nullptr;
    const double total = read_row<W, T, kAdd>(job.x + r * n, residual, sum, row, n);
    const float mean = static_cast<float>(total / static_cast<double>(n));
    pad_row<W, T>(row, n, mean);
    const double variance = squared_deviations<W>(row, n, mean) / static_cast<double>(n);
    const float rstd = static_cast<float>(1.0 / std::sqrt(variance + job.eps));
    write_row<W, T>(row, weight, bias, job.out + r * n, n, mean, rstd);
  }
}

// One copy of the rows' code for each instruction set.
template <class T, bool kAdd>
void rows_portable(const Job<T>& job, int64_t first, int64_t last) {
  run_rows<4, T, kAdd>(job, first, last);
}

#if defined(__x86_64__)
template <class T, bool kAdd>
BLIP_FAST_TARGET_AVX2 void rows_avx2(const Job<T>& job, int64_t first, int64_t last) {
  run_rows<8, T, kAdd>(job, first, last);
}

template <class T, bool kAdd>
BLIP_FAST_TARGET_AVX512 void rows_avx512(const Job<T>& job, int64_t first, int64_t last) {
  run_rows<16, T, kAdd>(job, first, last);
}
#endif

template <class T, bool kAdd>
auto pick_rows() {
#if defined(__x86_64__)
  if (current_isa() >= Isa::avx512) return &rows_avx512<T, kAdd>;
  if (current_isa() == Isa::avx2) return &rows_avx2<T, kAdd>;
#endif
  return &rows_portable<T, kAdd>;
}

template <class T>
void run(const Tensor& x, const std::optional<Tensor>& residual, const Tensor& weight,
         const Tensor& bias, double eps, const std::optional<Tensor>& sum, const Tensor& out) {
  const int64_t n = x.size(x.dim() - 1);
  const Job<T> job{static_cast<const T*>(x.const_data_ptr()),
                   residual ? static_cast<const T*>(residual->const_data_ptr()) : nullptr,
                   weight.const_data_ptr(),
                   bias.const_data_ptr(),
                   sum ? static_cast<T*>(sum->mutable_data_ptr()) : nullptr,
                   static_cast<T*>(out.mutable_data_ptr()),
                   n,
                   eps,
                   weight.scalar_type() == ScalarType::Float};
  const auto rows = residual ? pick_rows<T, true>() : pick_rows<T, false>();
  torch::stable::parallel_for(0, x.numel() / n, std::max<int64_t>(1, kGrain / n),
                              [&](int64_t first, int64_t last) { rows(job, first, last); });
}

void check_arguments(const Tensor& x, const std::optional<Tensor>& residual, const Tensor& weight,
                     const Tensor& bias) {
  STD_TORCH_CHECK(x.dim() >= 1, "x has no dimension; pass at least one row, [n]");
  const int64_t n = x.size(x.dim() - 1);
  check_contiguous(x, "x");
  if (residual) {
    check_contiguous(*residual, "residual");
    check_dtype(*residual, x.scalar_type(), "residual");
    check_same_shape(*residual, x, "residual", "x");
  }
  check_contiguous(weight, "weight");
  check_contiguous(bias, "bias");
  check_vector(weight, n, "weight");
  check_vector(bias, n, "bias");
  if (weight.scalar_type() != ScalarType::Float) check_dtype(weight, x.scalar_type(), "weight");
  check_dtype(bias, weight.scalar_type(), "bias");
}

// (x + residual rounded to x's dtype, LayerNorm of it); statistics in float32. The first result has
// no elements if there is no residual or `keep_sum` is false: an op may not return its own input.
std::tuple<Tensor, Tensor> add_layernorm(const Tensor& x, const std::optional<Tensor>& residual,
                                         const Tensor& weight, const Tensor& bias, double eps,
                                         bool keep_sum) {
  check_arguments(x, residual, weight, bias);
  std::optional<Tensor> sum;
  if (residual && keep_sum) sum = torch::stable::empty_like(x);
  Tensor out = torch::stable::empty_like(x);
  switch (x.scalar_type()) {
    case ScalarType::Float:
      if (x.numel() != 0) run<float>(x, residual, weight, bias, eps, sum, out);
      break;
    case ScalarType::BFloat16:
      if (x.numel() != 0) run<BFloat16>(x, residual, weight, bias, eps, sum, out);
      break;
    case ScalarType::Half:
      if (x.numel() != 0) run<Half>(x, residual, weight, bias, eps, sum, out);
      break;
    default:
      STD_TORCH_CHECK(false, "x is ", toString(x.scalar_type()),
                      ", expected float32, bfloat16 or float16; pass x.float()");
  }
  if (!sum) sum = torch::stable::new_empty(x, {0});
  return {*sum, out};
}

}  // namespace
}  // namespace blip_fast

STABLE_TORCH_LIBRARY_IMPL(blip_fast, CPU, m) {
  m.impl("add_layernorm.native", TORCH_BOX(&blip_fast::add_layernorm));
}

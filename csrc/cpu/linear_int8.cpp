// Linear on int8 weights with bias, exact GELU and residual; rows of x are quantised on the way.
//
// The weight comes packed (kernels/linear_int8/weight.py): panels of 32 of its rows, in a panel
// quads of k, in a quad's line 32 x 4 bytes. So a panel is read from end to end, each vector of it
// is 16 neighbouring results, and a quad of x meets it by one broadcast.
//
// x becomes bytes 1 to 255 around 128, which the instructions need; 128 times the sum of a weight
// row, where the sums begin, takes that away again.

#include <algorithm>
#include <memory>
#include <new>
#include <optional>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <blip_fast/check.h>
#include <blip_fast/dot.h>
#include <blip_fast/epilogue.h>
#include <blip_fast/int8_tiles.h>
#include <blip_fast/isa.h>
#include <blip_fast/product.h>
#include <blip_fast/quad.h>
#include <blip_fast/vec.h>

namespace blip_fast {
namespace {

constexpr int64_t kPanel = 32;       // weight rows, and thus neighbouring results
constexpr int64_t kQuad = 4;         // bytes
constexpr int64_t kLine = 64;        // bytes of a whole vector
constexpr int64_t kZero = 128;       // the byte that stands for 0 in x
constexpr float kLevels = 127.0f;    // from 0 to the largest magnitude of a row
constexpr float kLeast = 1e-30f;     // a row's largest magnitude counts at least as much
constexpr int64_t kBlock = 1 << 18;  // bytes of x that stay in the L2 cache beside a panel
// Up to so many rows vectors multiply while a panel comes from memory; tiles would wait for it too.
constexpr int64_t kFewRows = 12;
constexpr int64_t kGrain = 1 << 20;  // multiply-adds that are worth waking a thread for
// How far before its use the weight is asked for: one row of x waits for nothing but memory.
constexpr int64_t kAhead = 4096;

template <class T>
struct Job {
  const T* x;             // [rows, k]
  const int8_t* weight;   // [panels, quads, 32, 4]
  const float* scales;    // [n]
  const int32_t* starts;  // [panels * 32], -128 times the sum of each weight row
  Epilogue<T> end;
  int64_t rows, n, k;

  int64_t quads() const { return (k + kQuad - 1) / kQuad; }
  int64_t panels() const { return (n + kPanel - 1) / kPanel; }
  // Bytes from a quantised row to the next: whole vectors.
  int64_t stride() const { return (k + kLine - 1) / kLine * kLine; }
};

// Rows of x as bytes, and the scale of each.
class Bytes {
 public:
  // There is memory for whole tiles of 16 rows.
  Bytes(int64_t rows, int64_t stride)
      : data_(new (std::align_val_t{64})
                  uint8_t[(rows + kTileRows - 1) / kTileRows * kTileRows * stride]),
        scales_(rows),
        stride_(stride) {}
  uint8_t* row(int64_t index) const { return data_.get() + index * stride_; }
  float& scale(int64_t index) { return scales_[index]; }
  const float& scale(int64_t index) const { return scales_[index]; }
  int64_t stride() const { return stride_; }

 private:
  struct Free {
    void operator()(uint8_t* data) const { ::operator delete[](data, std::align_val_t{64}); }
  };
  std::unique_ptr<uint8_t[], Free> data_;
  std::vector<float> scales_;
  int64_t stride_;
};

// Row `from` of x to row `to` of bytes. A row with an infinity or a NaN has a NaN for its scale, so
// that all its results are.
template <int W, class T>
BLIP_FAST_INLINE void quantise_row(const Job<T>& job, int64_t from, Bytes& bytes, int64_t to) {
  const T* const x = job.x + from * job.k;
  const auto load = [&](int64_t i) __attribute__((always_inline)) {
    return load_row<W>(x + i, std::min<int64_t>(W, job.k - i));
  };
  const int32_t most = largest_magnitude<W>(job.k, load);
  float top;
  std::memcpy(&top, &most, sizeof top);
  const bool finite = most < 0x7f800000;
  top = std::max(finite ? top : 0.0f, kLeast);
  bytes.scale(to) = finite ? top / kLevels : __builtin_nanf("");
  const float factor = finite ? kLevels / top : 0.0f;
  const f32<W> by = broadcast<W>(&factor);
  uint8_t* const out = bytes.row(to);
  for (int64_t i = 0; i < job.k; i += W) {
    store_bytes<W>(out + i, nearest<W>(load(i) * by) + static_cast<int32_t>(kZero));
  }
}

// By value: what has its address taken does not stay in a register.
template <class Vector>
BLIP_FAST_INLINE void store_vector(int32_t* to, Vector v) {
  std::memcpy(to, &v, sizeof v);
}

// What follows the sums of `columns` columns of one row, of which those beyond n are left out.
template <int W, class T>
BLIP_FAST_INLINE void finish_row(const Job<T>& job, const int32_t* sums, const float& scale,
                                 int64_t row, int64_t column, int64_t columns) {
  const f32<W> by = broadcast<W>(&scale);
  for (int64_t c = 0; c < columns && column + c < job.n; c += W) {
    const int64_t at = column + c, count = std::min<int64_t>(W, job.n - at);
    const f32<W> y = __builtin_convertvector(load_vector<i32<W>>(sums + c), f32<W>);
    job.end.template finish<W>(y * (load_row<W>(job.scales + at, count) * by), row, at, count);
  }
}

// Sums of M rows of x and kVectors vectors of a panel, and what follows them.
template <class D, int M, class T>
BLIP_FAST_INLINE void multiply_tile(const Job<T>& job, const Bytes& x, int64_t row, int64_t first,
                                    int64_t column) {
  constexpr int W = D::W, N = D::kVectors;
  i32<W> sums[M][N];
  unroll<M>([&](auto m) __attribute__((always_inline)) {
    unroll<N>([&](auto n) __attribute__((always_inline)) {
      sums[m][n] = load_vector<i32<W>>(job.starts + column + n * W);
    });
  });
  const int64_t quads = job.quads(), stride = x.stride();
  const int8_t* weight = job.weight + column / kPanel * kPanel * kQuad * quads +
                         column % kPanel * kQuad;
  const uint8_t* left = x.row(row);
  for (int64_t q = 0; q < quads; ++q, weight += kPanel * kQuad, left += kQuad) {
    typename D::Right columns[N];
    unroll<N>([&](auto n) __attribute__((always_inline)) {
      // Many rows find the weight in the cache.
      if constexpr (M < D::kRows) __builtin_prefetch(weight + kAhead + n * W * kQuad, 0, 3);
      columns[n] = D::right(weight + n * W * kQuad);
    });
    unroll<M>([&](auto m) __attribute__((always_inline)) {
      const typename D::Left quad = D::left(left + m * stride);
      unroll<N>([&](auto n) __attribute__((always_inline)) {
        D::add(sums[m][n], quad, columns[n]);
      });
    });
  }
  // By way of memory: what follows is long, and would be unrolled with the sums in registers.
  alignas(64) int32_t results[M][N * W];
  unroll<M>([&](auto m) __attribute__((always_inline)) {
    unroll<N>([&](auto n) __attribute__((always_inline)) {
      store_vector(results[m] + n * W, sums[m][n]);
    });
  });
  for (int m = 0; m < M; ++m) {
    finish_row<W>(job, results[m], x.scale(row + m), first + row + m, column, N * W);
  }
}

template <class D, int M, class T>
BLIP_FAST_INLINE void multiply_rest(int64_t rows, const Job<T>& job, const Bytes& x, int64_t row,
                                    int64_t first, int64_t column) {
  if (rows == M) {
    multiply_tile<D, M>(job, x, row, first, column);
  } else if constexpr (M > 1) {
    multiply_rest<D, M - 1>(rows, job, x, row, first, column);
  }
}

// All `rows` of x, of which the first is row `first` of the result, against panels [from, to).
template <class D, class T>
BLIP_FAST_INLINE void multiply_panels(const Job<T>& job, const Bytes& x, int64_t rows,
                                      int64_t first, int64_t from, int64_t to) {
  constexpr int64_t kColumns = D::W * D::kVectors;
  for (int64_t column = from * kPanel; column < std::min(to * kPanel, job.n);
       column += kColumns) {
    int64_t row = 0;
    for (; row + D::kRows <= rows; row += D::kRows) {
      multiply_tile<D, D::kRows>(job, x, row, first, column);
    }
    if (row < rows) multiply_rest<D, D::kRows - 1>(rows - row, job, x, row, first, column);
  }
}

// As `multiply_panels`, on tiles where rows are many.
template <class D, class Tiles, class T>
BLIP_FAST_INLINE void multiply_panels_on_tiles(const Job<T>& job, const Bytes& x, int64_t rows,
                                               int64_t first, int64_t from, int64_t to) {
  if (rows <= kFewRows) return multiply_panels<D>(job, x, rows, first, from, to);
  static_assert(kPanel == kTiledColumns);
  alignas(64) int32_t sums[kTiledRows][kPanel];
  Tiles tiles(kWholeTiles);
  for (int64_t panel = from; panel < to; ++panel) {
    const int8_t* const weight = job.weight + panel * job.quads() * kPanel * kQuad;
    for (int64_t row = 0; row < rows; row += kTiledRows) {
      const int64_t count = std::min(kTiledRows, rows - row);
      multiply_panel(tiles, x.row(row), x.stride(), count, weight, job.quads(),
                     job.starts + panel * kPanel, sums[0]);
      for (int64_t m = 0; m < count; ++m) {
        finish_row<D::W>(job, sums[m], x.scale(row + m), first + row + m, panel * kPanel, kPanel);
      }
    }
  }
}

// One copy of the code for each instruction set; kRows: blocks of rows are a multiple.
#define BLIP_FAST_STEPS(Name, Quads, Rows, Multiply, Target)                                    \
  template <class T>                                                                            \
  struct Name {                                                                                 \
    static constexpr int64_t kRows = Rows;                                                      \
    Target static void quantise(const Job<T>& job, int64_t from, int64_t to, Bytes& bytes) {    \
      for (int64_t r = from; r < to; ++r) quantise_row<Quads::W>(job, r, bytes, r - from);      \
    }                                                                                           \
    Target static void multiply(const Job<T>& job, const Bytes& x, int64_t rows, int64_t first, \
                                int64_t from, int64_t to) {                                     \
      Multiply(job, x, rows, first, from, to);                                                  \
    }                                                                                           \
  };
#define BLIP_FAST_VECTOR_STEPS(Name, Quads, Target) \
  BLIP_FAST_STEPS(Name, Quads, Quads::kRows, multiply_panels<Quads>, Target)
#define BLIP_FAST_TILE_STEPS(Name, Quads, Tiles, Target) \
  BLIP_FAST_STEPS(Name, Quads, kTiledRows, (multiply_panels_on_tiles<Quads, Tiles>), Target)
BLIP_FAST_VECTOR_STEPS(PortableSteps, PlainQuads, )
BLIP_FAST_TILE_STEPS(AmxPortableSteps, PlainQuads, EmulatedTiles, )
#if defined(__x86_64__)
BLIP_FAST_VECTOR_STEPS(Avx2Steps, PairedQuads<8>, BLIP_FAST_TARGET_AVX2)
BLIP_FAST_VECTOR_STEPS(Avx512Steps, PairedQuads<16>, BLIP_FAST_TARGET_AVX512)
BLIP_FAST_VECTOR_STEPS(VnniSteps, VnniQuads, BLIP_FAST_TARGET_AVX512BF16)
BLIP_FAST_TILE_STEPS(AmxSteps, VnniQuads, AmxTiles, BLIP_FAST_TARGET_AVX512BF16)
BLIP_FAST_TILE_STEPS(AmxEmulatedSteps, VnniQuads, EmulatedTiles, BLIP_FAST_TARGET_AVX512BF16)
#endif
#undef BLIP_FAST_TILE_STEPS
#undef BLIP_FAST_VECTOR_STEPS
#undef BLIP_FAST_STEPS

// Rows of x that are quantised at once: what stays in the cache, in equal shares for all threads.
int64_t rows_at_once(int64_t rows, int64_t stride, int64_t step) {
  const int64_t most = std::max<int64_t>(step, kBlock / std::max<int64_t>(1, stride));
  int64_t blocks = (rows + most - 1) / most;
  if (blocks == 1) return rows;
  const int64_t threads = torch::stable::get_num_threads();
  blocks = (blocks + threads - 1) / threads * threads;
  return ((rows + blocks - 1) / blocks + step - 1) / step * step;
}

template <class Steps, class T>
void run_with(const Job<T>& job) {
  const int64_t at_once = rows_at_once(job.rows, job.stride(), Steps::kRows);
  const int64_t panels = job.panels(), panel_work = kPanel * std::max<int64_t>(1, job.k);
  if (at_once == job.rows) {  // few: threads share the panels
    Bytes x(job.rows, job.stride());
    Steps::quantise(job, 0, job.rows, x);
    torch::stable::parallel_for(0, panels, std::max<int64_t>(1, kGrain / (job.rows * panel_work)),
                                [&](int64_t from, int64_t to) {
                                  Steps::multiply(job, x, job.rows, 0, from, to);
                                });
    return;
  }
  torch::stable::parallel_for(0, (job.rows + at_once - 1) / at_once, 1,
                              [&](int64_t from, int64_t to) {
    Bytes x(at_once, job.stride());
    for (int64_t first = from * at_once; first < std::min(to * at_once, job.rows);
         first += at_once) {
      const int64_t rows = std::min(at_once, job.rows - first);
      Steps::quantise(job, first, first + rows, x);
      Steps::multiply(job, x, rows, first, 0, panels);
    }
  });
}

template <class T>
void run(const Job<T>& job) {
  const auto [name, isa, tiles] = current_level();
#if defined(__x86_64__)
  if (tiles == Tiles::amx) return run_with<AmxSteps<T>>(job);
  if (isa == Isa::avx512bf16) {
    return tiles == Tiles::none ? run_with<VnniSteps<T>>(job) : run_with<AmxEmulatedSteps<T>>(job);
  }
  if (isa == Isa::avx512) return run_with<Avx512Steps<T>>(job);
  if (isa == Isa::avx2) return run_with<Avx2Steps<T>>(job);
#endif
  if (tiles == Tiles::emulated) return run_with<AmxPortableSteps<T>>(job);
  run_with<PortableSteps<T>>(job);
}

template <class T>
const T* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

template <class T>
void run_as(const Tensor& x, const Tensor& weight, const Tensor& scales, const Tensor& starts,
            const std::optional<Tensor>& bias, bool gelu, const std::optional<Tensor>& residual,
            const Tensor& out) {
  const int64_t n = scales.numel();
  run(Job<T>{static_cast<const T*>(x.const_data_ptr()),
             static_cast<const int8_t*>(weight.const_data_ptr()),
             static_cast<const float*>(scales.const_data_ptr()),
             static_cast<const int32_t*>(starts.const_data_ptr()),
             {data_or_null<T>(bias), data_or_null<T>(residual),
              static_cast<T*>(out.mutable_data_ptr()), n, gelu},
             out.numel() / n,
             n,
             x.size(x.dim() - 1)});
}

void check_arguments(const Tensor& x, const Tensor& weight, const Tensor& scales,
                     const Tensor& starts, const std::optional<Tensor>& bias) {
  STD_TORCH_CHECK(x.dim() >= 1, "x has no dimension; pass at least one row, [k]");
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(2) == kPanel && weight.size(3) == kQuad,
                  "weight must be packed, [panels, quads, 32, 4]");
  const int64_t k = x.size(x.dim() - 1), n = scales.numel();
  STD_TORCH_CHECK(weight.size(1) == (k + kQuad - 1) / kQuad, "x has rows of width ", k,
                  ", the weight takes ", weight.size(1), " times 4");
  STD_TORCH_CHECK(k <= (1 << 17), "x has rows of width ", k, "; sums of 32 bits hold 131072");
  STD_TORCH_CHECK(weight.size(0) == (n + kPanel - 1) / kPanel, "scales has ", n,
                  " elements, the weight ", weight.size(0), " panels of 32 rows");
  check_contiguous(x, "x");
  check_contiguous(weight, "weight");
  check_contiguous(scales, "scales");
  check_contiguous(starts, "starts");
  check_dtype(weight, ScalarType::Char, "weight");
  check_dtype(scales, ScalarType::Float, "scales");
  check_dtype(starts, ScalarType::Int, "starts");
  check_vector(scales, n, "scales");
  check_vector(starts, weight.size(0) * kPanel, "starts");
  if (bias) {
    check_contiguous(*bias, "bias");
    check_dtype(*bias, x.scalar_type(), "bias");
    check_vector(*bias, n, "bias");
  }
}

// activation(x weight^T + bias) + residual, x by rows and weight by its rows rounded to int8.
Tensor linear_int8(const Tensor& x, const Tensor& weight, const Tensor& scales,
                   const Tensor& starts, const std::optional<Tensor>& bias, bool gelu,
                   const std::optional<Tensor>& residual) {
  check_arguments(x, weight, scales, starts, bias);
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = scales.numel();
  Tensor out = torch::stable::new_empty(x, shape);
  if (residual) {
    check_contiguous(*residual, "residual");
    check_dtype(*residual, x.scalar_type(), "residual");
    check_same_shape(*residual, out, "residual", "the result");
  }
  const bool is_float = x.scalar_type() == ScalarType::Float;
  STD_TORCH_CHECK(is_float || x.scalar_type() == ScalarType::BFloat16, "x is ",
                  toString(x.scalar_type()), ", expected float32 or bfloat16; pass x.float()");
  if (out.numel() == 0) return out;
  const auto run_dtype = is_float ? &run_as<float> : &run_as<BFloat16>;
  run_dtype(x, weight, scales, starts, bias, gelu, residual, out);
  return out;
}

}  // namespace
}  // namespace blip_fast

STABLE_TORCH_LIBRARY_IMPL(blip_fast, CPU, m) {
  m.impl("linear_int8.native", TORCH_BOX(&blip_fast::linear_int8));
}

// Linear with bias, exact GELU and residual for few rows: the steps of decoding.
//
// There the weight is read from memory once and used a few times, so that reading it is the work:
// it is taken as it lies, [n, k], with no copy in another order. The rows of x stay in the cache.
// Many rows are computed too, but oneDNN on a packed weight is faster at that.

#include <algorithm>
#include <memory>
#include <new>
#include <optional>
#include <type_traits>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <blip_fast/check.h>
#include <blip_fast/dot.h>
#include <blip_fast/epilogue.h>
#include <blip_fast/isa.h>
#include <blip_fast/vec.h>

namespace blip_fast {
namespace {

// Weight rows that a thread takes at a time, 24 KiB in a base model: they stay in the L1 cache
// while all rows of x meet them.
constexpr int64_t kBlock = 16;
// Rows of x that meet a block before the next block is read.
constexpr int64_t kGroup = 48;
// Multiply-adds that are worth waking a thread for, some 30 us.
constexpr int64_t kGrain = 1 << 20;

template <class T>
struct Job {
  const T* x;         // [rows, k]
  const T* weight;    // [n, k]
  Epilogue<T> end;
  int64_t rows, n, k;
};

// Rows of x as D reads them, private to one thread: in place where they are so already.
template <class D>
class PreparedRows {
 public:
  using Stored = typename D::Stored;
  using Prepared = typename D::Prepared;

  BLIP_FAST_INLINE PreparedRows(const Stored* x, int64_t rows, int64_t k) : stride_(k) {
    if constexpr (std::is_same_v<Stored, Prepared>) {
      if (k % D::kStep == 0) {
        data_ = x;
        return;
      }
    }
    stride_ = (k + D::kStep - 1) / D::kStep * D::kStep;
    own_.reset(new (std::align_val_t{64}) Prepared[rows * stride_]);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < k; i += D::kStep) {
        const int64_t count = std::min<int64_t>(D::kStep, k - i);
        D::prepare(x + r * k + i, count, own_.get() + r * stride_ + i);
      }
    }
    data_ = own_.get();
  }
  const Prepared* row(int64_t index) const { return data_ + index * stride_; }
  int64_t stride() const { return stride_; }

 private:
  struct Free {
    void operator()(Prepared* data) const { ::operator delete[](data, std::align_val_t{64}); }
  };
  int64_t stride_;
  const Prepared* data_ = nullptr;
  std::unique_ptr<Prepared[], Free> own_;
};

// The results of `columns` <= kBlock columns of one row.
template <int W, class T>
BLIP_FAST_INLINE void finish_row(const Epilogue<T>& end, const float* sums, int64_t row,
                                 int64_t column, int64_t columns) {
  for (int64_t c = 0; c < columns; c += W) {
    const int64_t count = std::min<int64_t>(W, columns - c);
    end.template finish<W>(load_vector<f32<W>>(sums + c), row, column + c, count);
  }
}

// What tile `tile` of `tiles` at column c of a block asks for. A single one: what follows it. One
// of several: its share of the next block, so that memory is at work all the time.
//
// In the order of memory, which the processor foresees, as it does not four rows side by side: one
// row of x, 768 -> 3072, cold, takes 170-190 us, and 380 without or in the order of use.
template <class D>
BLIP_FAST_INLINE Ahead ahead(const typename D::Stored* weight, int64_t k, int64_t tiles,
                             int64_t tile, int64_t c) {
  const int64_t size = sizeof(typename D::Stored);
  const int64_t all = kTileColumns * D::kStep * size;
  const auto* bytes = reinterpret_cast<const char*>(weight);
  if (tiles == 1) return {bytes + (c + kTileColumns) * k * size, all};
  const int64_t share = (tile * kBlock + c) * k * size / tiles;
  return {bytes + kBlock * k * size + share, all / tiles};
}

// Rows [row, row + rows) of x against weight rows [column, column + columns).
template <class D>
BLIP_FAST_INLINE void run_block(const Job<typename D::Stored>& job, const PreparedRows<D>& x,
                                int64_t row, int64_t rows, int64_t column, int64_t columns) {
  alignas(64) float sums[kGroup * kBlock];
  // Tiles of equal height: 8 rows are 4 and 4, not 6 and 2, for a low tile loads more than it adds.
  const int64_t tiles = (rows + D::kRows - 1) / D::kRows;
  const auto* weight = job.weight + column * job.k;
  int64_t r = 0;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t height = (rows - r + tiles - tile - 1) / (tiles - tile);
    for (int64_t c = 0; c < columns; c += kTileColumns) {
      dot_tile_of<D, D::kRows>(height, x.row(r), x.stride(), weight + c * job.k, job.k,
                               columns - c, ahead<D>(weight, job.k, tiles, tile, c),
                               sums + r * kBlock + c, kBlock);
    }
    r += height;
  }
  for (r = 0; r < rows; ++r) {
    finish_row<D::W>(job.end, sums + r * kBlock, row + r, column, columns);
  }
}

template <class D>
BLIP_FAST_INLINE void run_columns(const Job<typename D::Stored>& job, int64_t first, int64_t last) {
  for (int64_t row = 0; row < job.rows; row += kGroup) {
    const int64_t rows = std::min(kGroup, job.rows - row);
    const PreparedRows<D> x(job.x + row * job.k, rows, job.k);
    for (int64_t block = first; block < last; ++block) {
      const int64_t column = block * kBlock;
      run_block<D>(job, x, row, rows, column, std::min(kBlock, job.n - column));
    }
  }
}

// One copy of the code for each instruction set.
template <class T>
void columns_portable(const Job<T>& job, int64_t first, int64_t last) {
  run_columns<WidenedDot<4, T>>(job, first, last);
}

#if defined(__x86_64__)
template <class T>
BLIP_FAST_TARGET_AVX2 void columns_avx2(const Job<T>& job, int64_t first, int64_t last) {
  run_columns<WidenedDot<8, T>>(job, first, last);
}

template <class T>
BLIP_FAST_TARGET_AVX512 void columns_avx512(const Job<T>& job, int64_t first, int64_t last) {
  run_columns<WidenedDot<16, T>>(job, first, last);
}

BLIP_FAST_TARGET_AVX512BF16 void columns_bf16(const Job<BFloat16>& job, int64_t first,
                                              int64_t last) {
  run_columns<Bf16Dot>(job, first, last);
}
#endif

template <class T>
auto pick_columns() {
#if defined(__x86_64__)
  if constexpr (std::is_same_v<T, BFloat16>) {
    if (current_isa() >= Isa::avx512bf16) return &columns_bf16;
  }
  if (current_isa() >= Isa::avx512) return &columns_avx512<T>;
  if (current_isa() == Isa::avx2) return &columns_avx2<T>;
#endif
  return &columns_portable<T>;
}

template <class T>
const T* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

template <class T>
void run(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, bool gelu,
         const std::optional<Tensor>& residual, const Tensor& out) {
  const int64_t n = weight.size(0), k = weight.size(1);
  const int64_t rows = out.numel() / n;
  const Job<T> job{static_cast<const T*>(x.const_data_ptr()),
                   static_cast<const T*>(weight.const_data_ptr()),
                   {data_or_null<T>(bias), data_or_null<T>(residual),
                    static_cast<T*>(out.mutable_data_ptr()), n, gelu},
                   rows,
                   n,
                   k};
  const auto columns = pick_columns<T>();
  const int64_t work = std::max<int64_t>(1, rows * k * kBlock);
  torch::stable::parallel_for(0, (n + kBlock - 1) / kBlock, std::max<int64_t>(1, kGrain / work),
                              [&](int64_t first, int64_t last) { columns(job, first, last); });
}

void check_arguments(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  STD_TORCH_CHECK(x.dim() >= 1, "x has no dimension; pass at least one row, [k]");
  STD_TORCH_CHECK(weight.dim() == 2, "weight has ", weight.dim(), " dimensions, expected [n, k]");
  const int64_t width = x.size(x.dim() - 1);
  STD_TORCH_CHECK(width == weight.size(1), "x has rows of width ", width, ", the weight takes ",
                  weight.size(1));
  check_contiguous(x, "x");
  check_contiguous(weight, "weight");
  check_dtype(weight, x.scalar_type(), "weight");
  if (bias) {
    check_contiguous(*bias, "bias");
    check_dtype(*bias, x.scalar_type(), "bias");
    check_vector(*bias, weight.size(0), "bias");
  }
}

// activation(x weight^T + bias) + residual, summed in float32 and rounded once.
Tensor linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, bool gelu,
              const std::optional<Tensor>& residual) {
  check_arguments(x, weight, bias);
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = weight.size(0);
  Tensor out = torch::stable::new_empty(x, shape);
  if (residual) {
    check_contiguous(*residual, "residual");
    check_dtype(*residual, x.scalar_type(), "residual");
    check_same_shape(*residual, out, "residual", "the result");
  }
  switch (x.scalar_type()) {
    case ScalarType::Float:
      if (out.numel() != 0) run<float>(x, weight, bias, gelu, residual, out);
      break;
    case ScalarType::BFloat16:
      if (out.numel() != 0) run<BFloat16>(x, weight, bias, gelu, residual, out);
      break;
    default:
      STD_TORCH_CHECK(false, "x is ", toString(x.scalar_type()),
                      ", expected float32 or bfloat16; pass x.float()");
  }
  return out;
}

}  // namespace
}  // namespace blip_fast

STABLE_TORCH_LIBRARY_IMPL(blip_fast, CPU, m) {
  m.impl("linear.native", TORCH_BOX(&blip_fast::linear));
}

// Pixels to normalised patch rows in one pass: each pixel is read once and written once.
//
// A patch row is P * P pixels of each channel, P at a time from rows of the image; all patches of
// a row of patches read the same 3 * P image rows, which stay in the L1 cache.

#include <array>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <blip_fast/check.h>
#include <blip_fast/isa.h>
#include <blip_fast/vec.h>

namespace blip_fast {
namespace {

// A thread gets at least this many pixels (some 10 us of work), or waking it costs more.
constexpr int64_t kGrain = 65536;

// Normalised pixel = pixel * scale + shift.
struct Normal {
  float scale, shift;
};

template <class T>
struct Job {
  const uint8_t* images;  // [n, channels, height, width]
  T* out;                 // [n * rows * columns, channels * size * size]
  int64_t channels, rows, columns, size;
  std::vector<Normal> normals;       // [channels]
  std::vector<std::array<T, 256>> tables;  // [channels]: every pixel's result
};

#if defined(__x86_64__)
// 16 pixels at a time. As assembly, because g++ 12 turns the conversions of its vectors into one
// lane after the other, and an intrinsic may not stand in a function without its own target.
constexpr int64_t kLanes = 16;
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

BLIP_FAST_INLINE f32<kLanes> normalise(const uint8_t* from, const Normal& normal) {
  const Bytes pixels = load_vector<Bytes>(from);
  f32<kLanes> v;
  asm("vpmovzxbd %1, %0\n\tvcvtdq2ps %0, %0" : "=v"(v) : "v"(pixels));
  return v * normal.scale + normal.shift;
}

BLIP_FAST_INLINE void store_rounded(float* to, const f32<kLanes>& v) {
  std::memcpy(to, &v, sizeof v);
}

BLIP_FAST_INLINE void store_rounded(BFloat16* to, const f32<kLanes>& v) {
  const u32<kLanes> bits = (u32<kLanes>)v;
  const u32<kLanes> rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  u16<kLanes> high;
  asm("vpmovdw %1, %0" : "=v"(high) : "v"(rounded >> 16));
  std::memcpy(to, &high, sizeof high);
}

BLIP_FAST_INLINE void store_rounded(Half* to, const f32<kLanes>& v) {
  u16<kLanes> bits;
  asm("vcvtps2ph $0, %1, %0" : "=v"(bits) : "v"(v));  // 0: to nearest, ties to even
  std::memcpy(to, &bits, sizeof bits);
}
#endif

// One run of a patch: `size` neighbouring pixels of a channel, by vectors as far as they go.
template <bool kVectors, class T>
BLIP_FAST_INLINE void write_run(const uint8_t* from, T* to, int64_t size,
                                [[maybe_unused]] const Normal& normal,
                                const std::array<T, 256>& table) {
  int64_t i = 0;
#if defined(__x86_64__)
  if constexpr (kVectors) {
    for (; i + kLanes <= size; i += kLanes) store_rounded(to + i, normalise(from + i, normal));
  }
#endif
  for (; i < size; ++i) to[i] = table[from[i]];
}

// Writes whole rows of patches, counted through all images.
template <bool kVectors, class T>
BLIP_FAST_INLINE void write_rows(const Job<T>& job, int64_t first, int64_t last) {
  const int64_t size = job.size, width = job.columns * size;
  const int64_t plane = job.rows * size * width;
  for (int64_t r = first; r < last; ++r) {
    const uint8_t* const corner = job.images + r / job.rows * job.channels * plane +
                                  r % job.rows * size * width;
    T* to = job.out + r * job.columns * job.channels * size * size;
    for (int64_t x = 0; x < job.columns; ++x) {
      for (int64_t c = 0; c < job.channels; ++c) {
        const uint8_t* from = corner + c * plane + x * size;
        const Normal normal = job.normals[c];
        for (int64_t y = 0; y < size; ++y, from += width, to += size) {
          write_run<kVectors>(from, to, size, normal, job.tables[c]);
        }
      }
    }
  }
}

// Below AVX-512 a look-up in the table is as fast as vectors are.
template <class T>
void rows_by_table(const Job<T>& job, int64_t first, int64_t last) {
  write_rows<false>(job, first, last);
}

#if defined(__x86_64__)
template <class T>
BLIP_FAST_TARGET_AVX512 void rows_avx512(const Job<T>& job, int64_t first, int64_t last) {
  write_rows<true>(job, first, last);
}
#endif

template <class T>
auto pick_rows() {
#if defined(__x86_64__)
  if (current_isa() >= Isa::avx512) return &rows_avx512<T>;
#endif
  return &rows_by_table<T>;
}

template <class T>
void run(const Tensor& images, int64_t size, const std::vector<double>& mean,
         const std::vector<double>& std, const Tensor& out) {
  Job<T> job{static_cast<const uint8_t*>(images.const_data_ptr()),
             static_cast<T*>(out.mutable_data_ptr()),
             images.size(1),
             images.size(2) / size,
             images.size(3) / size,
             size,
             {},
             {}};
  for (int64_t c = 0; c < job.channels; ++c) {
    job.normals.push_back(
        {static_cast<float>(1 / (255 * std[c])), static_cast<float>(-mean[c] / std[c])});
    auto& table = job.tables.emplace_back();
    for (int pixel = 0; pixel < 256; ++pixel) {
      table[pixel] = static_cast<T>(static_cast<float>((pixel / 255.0 - mean[c]) / std[c]));
    }
  }
  const auto rows = pick_rows<T>();
  const int64_t row_pixels = job.channels * size * size * job.columns;
  torch::stable::parallel_for(0, images.size(0) * job.rows,
                              std::max<int64_t>(1, kGrain / row_pixels),
                              [&](int64_t first, int64_t last) { rows(job, first, last); });
}

void check_arguments(const Tensor& images, int64_t size, const std::vector<double>& mean,
                     const std::vector<double>& std) {
  check_contiguous(images, "images");
  check_dtype(images, ScalarType::Byte, "images");
  STD_TORCH_CHECK(images.dim() == 4, "images have ", images.dim(), " dimensions, expected four");
  STD_TORCH_CHECK(size > 0 && images.size(2) % size == 0 && images.size(3) % size == 0,
                  "images of ", images.size(2), " x ", images.size(3),
                  " pixels do not divide into patches of ", size);
  const size_t channels = images.size(1);
  STD_TORCH_CHECK(mean.size() == channels && std.size() == channels, "images have ", channels,
                  " channels, but there are ", mean.size(), " means and ", std.size(),
                  " deviations");
}

Tensor patchify(const Tensor& images, int64_t size, const std::vector<double>& mean,
                const std::vector<double>& std, ScalarType dtype) {
  check_arguments(images, size, mean, std);
  const int64_t patches = images.size(2) / size * (images.size(3) / size);
  Tensor out = torch::stable::new_empty(
      images, {images.size(0) * patches, images.size(1) * size * size}, dtype);
  const bool any = out.numel() != 0;
  switch (dtype) {
    case ScalarType::Float:
      if (any) run<float>(images, size, mean, std, out);
      break;
    case ScalarType::BFloat16:
      if (any) run<BFloat16>(images, size, mean, std, out);
      break;
    case ScalarType::Half:
      if (any) run<Half>(images, size, mean, std, out);
      break;
    default:
      STD_TORCH_CHECK(false, "patches of ", toString(dtype),
                      " were asked for, expected float32, bfloat16 or float16");
  }
  return out;
}

}  // namespace
}  // namespace blip_fast

STABLE_TORCH_LIBRARY_IMPL(blip_fast, CPU, m) {
  m.impl("patchify.native", TORCH_BOX(&blip_fast::patchify));
}

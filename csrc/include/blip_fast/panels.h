// Rows of keys, values and queries from memory, laid out as the operands of `Product`.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

#include <blip_fast/cells.h>

namespace blip_fast {

inline constexpr int64_t kMaxWidth = 128;  // of a head

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// `count` rows of `width` elements, `stride` elements apart. `ahead` elements further on lies what
// the caller will read next; it is prefetched.
template <class T>
struct RowsOf {
  const T* first;
  int64_t stride, count, width;
  int64_t ahead = 0;
};

// What rows past the last one are read from.
template <class T>
alignas(64) inline constexpr unsigned char kZeros[kMaxWidth * sizeof(T)]{};

template <class T>
BLIP_FAST_INLINE const T* row_or_zeros(const RowsOf<T>& rows, int64_t row) {
  const T* const zeros = reinterpret_cast<const T*>(kZeros<T>);
  return row < rows.count ? rows.first + row * rows.stride : zeros;
}

template <int W, class T>
BLIP_FAST_INLINE void prefetch_piece(const RowsOf<T>& rows, int64_t row, int64_t element) {
  const auto* const at =
      reinterpret_cast<const char*>(rows.first + row * rows.stride + element + rows.ahead);
  for (size_t byte = 0; byte < 2 * W * sizeof(T); byte += 64) __builtin_prefetch(at + byte, 0, 2);
}

// Padded to whole pieces of 2W elements, which is what the panels below hold of a row.
template <class Cells>
BLIP_FAST_INLINE int64_t padded(int64_t width) {
  return round_up(width, 2 * Cells::kWidth);
}

// One row as cells along the depth, an operand A.
template <class Cells>
BLIP_FAST_INLINE void cells_of_row(const typename Cells::Element* row, int64_t width,
                                   uint32_t* cells) {
  constexpr int W = Cells::kWidth;
  for (int64_t i = 0; i < width; i += 2 * W) {
    u32<W> piece[Cells::kPieces];
    Cells::load(row + i, std::min<int64_t>(2 * W, width - i), piece);
    std::memcpy(cells, piece, sizeof piece);
    cells += Cells::kPieces * W;
  }
}

// The rows as lanes: panel[depth][row], an operand B of products over the width. Lanes up to a
// multiple of 2W are written, zero past the last row.
template <class Cells>
BLIP_FAST_INLINE void rows_as_lanes(const RowsOf<typename Cells::Element>& rows, uint32_t* panel,
                                    int64_t panel_stride) {
  constexpr int W = Cells::kWidth;
  const int64_t lanes = round_up(rows.count, 2 * W);
  for (int64_t first = 0; first < lanes; first += W) {
    uint32_t* to = panel + first;
    for (int64_t i = 0; i < rows.width; i += 2 * W) {
      const int64_t count = std::min<int64_t>(2 * W, rows.width - i);
      u32<W> block[Cells::kPieces][W];
#pragma GCC unroll 16
      for (int row = 0; row < W; ++row) {
        prefetch_piece<W>(rows, first + row, i);
        u32<W> piece[Cells::kPieces];
        Cells::load(row_or_zeros(rows, first + row) + i, count, piece);
        for (int p = 0; p < Cells::kPieces; ++p) block[p][row] = piece[p];
      }
      for (int p = 0; p < Cells::kPieces; ++p) {
        transpose<W>(block[p]);
#pragma GCC unroll 16
        for (int j = 0; j < W; ++j, to += panel_stride) {
          std::memcpy(to, &block[p][j], sizeof block[p][j]);
        }
      }
    }
  }
}

// The rows as depth: panel[row or pair of rows][element], an operand B of products over the rows.
// Elements lie in the order of `Storage`; rows up to a multiple of 2W are written, zero past the
// last.
template <class Cells>
BLIP_FAST_INLINE void rows_as_depth(const RowsOf<typename Cells::Element>& rows, uint32_t* panel,
                                    int64_t panel_stride) {
  constexpr int W = Cells::kWidth;
  using T = typename Cells::Element;
  const int64_t end = round_up(rows.count, 2 * W);
  for (int64_t row = 0; row < end; row += Cells::kDepth, panel += panel_stride) {
    for (int64_t i = 0; i < rows.width; i += 2 * W) {
      const int64_t count = std::min<int64_t>(2 * W, rows.width - i);
      u32<W> cells[2];
      prefetch_piece<W>(rows, row, i);
      if constexpr (Cells::kDepth == 1) {
        Cells::load(row_or_zeros(rows, row) + i, count, cells);
      } else {
        prefetch_piece<W>(rows, row + 1, i);
        const u32<W> a = load_bits<W, T>(row_or_zeros(rows, row) + i, count);
        const u32<W> b = load_bits<W, T>(row_or_zeros(rows, row + 1) + i, count);
        cells[0] = (a & 0xffffu) | (b << 16);
        cells[1] = (a >> 16) | (b & 0xffff0000u);
      }
      std::memcpy(panel + i, cells, sizeof cells);
    }
  }
}

// A row of float32 in the order of `Storage`, scaled and rounded to T.
template <class Cells>
BLIP_FAST_INLINE void write_row(const float* from, float scale, typename Cells::Element* to,
                                int64_t width) {
  constexpr int W = Cells::kWidth;
  using T = typename Cells::Element;
  for (int64_t i = 0; i < width; i += 2 * W) {
    const Pair<W> v = load_pair<W>(from + i);
    store_bits<W, T>(to + i, Storage<W, T>::narrow({v.a * scale, v.b * scale}),
                     std::min<int64_t>(2 * W, width - i));
  }
}

// Cells on cache lines, private to one thread, handed out piece by piece.
class Workspace {
 public:
  explicit Workspace(int64_t cells)
      : data_(new (std::align_val_t{64}) uint32_t[cells]), next_(data_.get()) {}
  uint32_t* cells(int64_t count) {
    uint32_t* const piece = next_;
    next_ += rounded(count);
    return piece;
  }
  void reset() { next_ = data_.get(); }
  float* floats(int64_t count) { return reinterpret_cast<float*>(cells(count)); }
  static int64_t rounded(int64_t count) { return round_up(count, 16); }

 private:
  struct Free {
    void operator()(uint32_t* data) const { ::operator delete[](data, std::align_val_t{64}); }
  };
  std::unique_ptr<uint32_t[], Free> data_;
  uint32_t* next_;
};

}  // namespace blip_fast

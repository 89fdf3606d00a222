// Checks of tensor arguments. A failed one reaches Python as RuntimeError with both values in it.
#pragma once

#include <cstdint>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

namespace blip_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_contiguous(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " is not contiguous; pass ", name,
                  ".contiguous()");
}

inline void check_dtype(const Tensor& tensor, ScalarType dtype, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, " is ", toString(tensor.scalar_type()),
                  ", expected ", toString(dtype), "; pass ", name, ".to(...)");
}

inline void check_same_shape(const Tensor& tensor, const Tensor& other, const char* name,
                             const char* other_name) {
  STD_TORCH_CHECK(tensor.dim() == other.dim(), name, " has ", tensor.dim(), " dimensions and ",
                  other_name, " has ", other.dim(), "; they must have one shape");
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    STD_TORCH_CHECK(tensor.size(d) == other.size(d), name, " has size ", tensor.size(d),
                    " in dimension ", d, " and ", other_name, " has ", other.size(d),
                    "; they must have one shape");
  }
}

// `tensor` must be a vector of `length` elements.
inline void check_vector(const Tensor& tensor, int64_t length, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == length, name, " has ", tensor.dim(),
                  " dimensions and ", tensor.numel(), " elements, expected one dimension of ",
                  length);
}

}  // namespace blip_fast

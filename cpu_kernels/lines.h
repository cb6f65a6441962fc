// Arrays (n, heads, dim) of vectors: queries, keys or values of tokens or of pool slots.
#pragma once

#include <cstdint>

namespace sgl {

// Floats, or int8 levels with a float16 scale (n, heads) for each vector. Strides are in elements.
// They need not be those of a dense array: values may be the first columns of the keys' memory.
struct Lines {
  const float* floats = nullptr;
  const int8_t* levels = nullptr;
  const _Float16* scales = nullptr;
  int64_t stride = 0, head_stride = 0;  // from one n or head to the next
  int64_t heads = 0;

  const float* at(int64_t n, int64_t head) const {
    return floats + n * stride + head * head_stride;
  }

  // Returns `dim` floats of one vector: where they are, or dequantized to `copy`.
  const float* read(int64_t n, int64_t head, int64_t dim, float* copy) const {
    if (floats) return at(n, head);
    const int8_t* from = levels + n * stride + head * head_stride;
    const float scale = scales[n * heads + head];
    for (int64_t d = 0; d < dim; d++) copy[d] = scale * from[d];
    return copy;
  }
};

}  // namespace sgl

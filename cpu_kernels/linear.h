// Products with weights of 4 or 8 bits: y (M, N) = x (M, K) times the transpose of w (N, K). Many
// rows are multiplied by the processor's matrix unit if it has one.
#pragma once

#include "rows.h"
#include "tiles.h"

namespace sgl {

constexpr int64_t kFew = 4;  // up to this many rows, vectors are faster than the matrix unit

inline void multiply(const PackedWeights& w, const float* x, int64_t rows, float* y) {
#ifdef SGL_TILES
  if (rows > kFew && tiles_allowed()) {
    (w.bits == 4 ? multiply_many<4> : multiply_many<8>)(w, x, rows, y);
    return;
  }
#endif
  (w.bits == 4 ? multiply_rows<4> : multiply_rows<8>)(w, x, rows, y);
}

}  // namespace sgl

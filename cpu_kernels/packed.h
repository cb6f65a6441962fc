// Packed weights of 4 or 8 bits, w = scale * q + bias for groups of 32 or more consecutive k. See
// `packing.py` for the layout.
#pragma once

#include <algorithm>

#include "simd.h"

namespace sgl {

constexpr int kDeep = 32;   // k of a tile
constexpr int kPairs = 16;  // pairs of neighbouring k in it

struct PackedWeights {
  const uint8_t* q;     // (N / 16, K / 32) tiles of 16 pairs
  const float* scales;  // (N / 16, K / group, 16)
  const float* biases;  // the same
  int bits, group;
  int64_t n, k;

  int64_t blocks() const { return (n + kLanes - 1) / kLanes; }
  int64_t groups() const { return k / group; }
  int64_t tile_bytes() const { return kLanes * kDeep * bits / 8; }
  const uint8_t* tile(int64_t block, int64_t deep) const {
    return q + (block * (k / kDeep) + deep) * tile_bytes();
  }
};

// Weights of k = 2 * pair and 2 * pair + 1, for 16 n: one register of them.
template <int kBits>
SGL_INLINE void unpack(const uint8_t* tile, int pair, int part, native& even, native& odd) {
  if constexpr (kBits == 4) {  // four pairs in a word
    const native_int words =
        load_native_int(tile + pair / 4 * 64 + part * 4 * kNative) >> (4 * (pair % 4));
    even = __builtin_convertvector(words & 15, native);
    odd = __builtin_convertvector(words >> 16 & 15, native);
  } else {
    const native_int words =
        __builtin_convertvector(load_native_short(tile + pair * 32 + part * 2 * kNative), native_int);
    even = __builtin_convertvector(words & 255, native);
    odd = __builtin_convertvector(words >> 8, native);
  }
}

SGL_INLINE void store_block(float* y, const PackedWeights& w, int64_t block, vec sums) {
  const int64_t first = block * kLanes, count = std::min<int64_t>(kLanes, w.n - first);
  if (count == kLanes) store(y + first, sums);
  else
    for (int64_t i = 0; i < count; i++) y[first + i] = sums[i];
}

// Sums each row of x over each group (rows, groups).
inline void sum_groups(const PackedWeights& w, const float* x, int64_t rows, float* totals) {
  for (int64_t m = 0; m < rows; m++)
    for (int64_t g = 0; g < w.groups(); g++) {
      vec total{};
      for (int64_t k = g * w.group; k < (g + 1) * w.group; k += kLanes)
        total += load(x + m * w.k + k);
      totals[m * w.groups() + g] = sum(total);
    }
}

}  // namespace sgl

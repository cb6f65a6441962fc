// Packed weights of 4 or 8 bits: w = scale * q + bias, with one scale and bias for each group of 32
// or more consecutive inputs. `packing.py` describes the layout.
#pragma once

#include <algorithm>
#include <cstring>

#include "simd.h"

namespace sgl {

constexpr int kOutputs = 16;  // outputs (n) of a tile
constexpr int kDeep = 32;     // inputs (k) of a tile
constexpr int kPairs = 16;    // pairs of neighbouring inputs of a tile
constexpr int kRegisters = kOutputs /
                           kLanes;  // registers that hold one float for each output of a tile

struct PackedWeights {
  const uint8_t* q;     // (blocks, K / 32) tiles; a block is 16 outputs
  const float* scales;  // (blocks, groups, 16)
  const float* biases;  // the same
  int bits, group;      // group: inputs that share a scale
  int64_t n, k;         // outputs and inputs; the last block is padded with zeros

  int64_t blocks() const { return (n + kOutputs - 1) / kOutputs; }
  int64_t groups() const { return k / group; }
  int64_t tile_bytes() const { return kOutputs * kDeep * bits / 8; }
  int64_t bytes() const { return blocks() * (k / kDeep) * tile_bytes(); }
  const uint8_t* tile(int64_t block, int64_t deep) const {
    return q + (block * (k / kDeep) + deep) * tile_bytes();
  }
};

// Unpacks the weights of inputs 2 * pair and 2 * pair + 1, for the outputs of register `part`.
template <int kBits>
SGL_INLINE void unpack(const uint8_t* tile, int pair, int part, vec& even, vec& odd) {
  if constexpr (kBits == 4) {  // a word has four pairs
    const ivec words = load_ints(tile + pair / 4 * 64 + part * 4 * kLanes) >> (4 * (pair % 4));
    even = __builtin_convertvector(words & 15, vec);
    odd = __builtin_convertvector(words >> 16 & 15, vec);
  } else {
    const ivec words = __builtin_convertvector(load_shorts(tile + pair * 32 + part * 2 * kLanes),
                                               ivec);
    even = __builtin_convertvector(words & 255, vec);
    odd = __builtin_convertvector(words >> 8, vec);
  }
}

// Writes the 16 results of a block to the row `y` (n,), except those of the padding.
SGL_INLINE void store_block(float* y, const PackedWeights& w, int64_t block, const float* results) {
  const int64_t first = block * kOutputs, count = std::min<int64_t>(kOutputs, w.n - first);
  std::memcpy(y + first, results, count * sizeof(float));
}

// Sums each row of x over each group, to `totals` (rows, groups).
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

// Products with packed weights by vectors, in float32. For each group, the sum of x * q is
// multiplied by the group's scale, and the group's bias times the sum of x is added.
#pragma once

#include <cstring>
#include <vector>

#include "buffer.h"
#include "packed.h"
#include "parallel.h"

namespace sgl {

// Rows whose sums fit into registers: few if even and odd inputs are summed at once, many if one
// after the other.
constexpr int kFewRows = kLanes == 16 ? 8 : 3, kManyRows = kLanes == 16 ? 12 : 6;

// Unpacks the q of one group, which many rows then read: inputs with even numbers to floats
// (k / 2, 16), then those with odd numbers.
template <int kBits>
SGL_INLINE void unpack_group(const uint8_t* tile, int64_t tiles, int64_t tile_bytes, float* evens) {
  float* odds = evens + tiles * kPairs * kOutputs;
  for (int64_t t = 0; t < tiles; t++, tile += tile_bytes)
#pragma GCC unroll 16
    for (int pair = 0; pair < kPairs; pair++, evens += kOutputs, odds += kOutputs)
#pragma GCC unroll 4
      for (int part = 0; part < kRegisters; part++) {
        vec even, odd;
        unpack<kBits>(tile, pair, part, even, odd);
        store(evens + part * kLanes, even);
        store(odds + part * kLanes, odd);
      }
}

// Sums of x * q over one group, for kRows rows and the 16 outputs of a block. Inputs with even and
// odd numbers have sums of their own: additions to different sums do not wait for each other.
template <int kRows>
struct GroupSums {
  vec evens[kRows][kRegisters] = {}, odds[kRows][kRegisters] = {};

  // Adds two inputs. All even sums come before all odd ones, so that fewer registers are needed.
  SGL_INLINE void add(const float* x, int64_t k, const vec* even, const vec* odd) {
#pragma GCC unroll 16
    for (int m = 0; m < kRows; m++)
#pragma GCC unroll 4
      for (int part = 0; part < kRegisters; part++) evens[m][part] += x[m * k] * even[part];
#pragma GCC unroll 16
    for (int m = 0; m < kRows; m++)
#pragma GCC unroll 4
      for (int part = 0; part < kRegisters; part++) odds[m][part] += x[m * k + 1] * odd[part];
  }

  // Sums x * q over every other input, to evens or odds. Rows of x are `k` apart; q is (pairs, 16).
  static SGL_INLINE void add_half(const float* x, int64_t k, const float* q, int64_t pairs,
                                  vec (*half)[kRegisters]) {
    vec sums[kRows][kRegisters] = {};
    for (int64_t i = 0; i < pairs; i++, x += 2, q += kOutputs) {
      vec weights[kRegisters];
#pragma GCC unroll 4
      for (int part = 0; part < kRegisters; part++) weights[part] = load(q + part * kLanes);
#pragma GCC unroll 16
      for (int m = 0; m < kRows; m++)
#pragma GCC unroll 4
        for (int part = 0; part < kRegisters; part++) sums[m][part] += x[m * k] * weights[part];
    }
    for (int m = 0; m < kRows; m++)
      for (int part = 0; part < kRegisters; part++) half[m][part] = sums[m][part];
  }

  // Adds the group's share of the product to `sums` (kRows, 16). `totals` has the group's sum of x:
  // row m is at totals[m * groups].
  SGL_INLINE void finish(const float* scales, const float* biases, const float* totals,
                         int64_t groups, float* sums) const {
#pragma GCC unroll 16
    for (int m = 0; m < kRows; m++)
#pragma GCC unroll 4
      for (int part = 0; part < kRegisters; part++) {
        const vec scale = load(scales + part * kLanes), bias = load(biases + part * kLanes);
        float* to = sums + m * kOutputs + part * kLanes;
        store(to,
              load(to) + (scale * (evens[m][part] + odds[m][part]) + totals[m * groups] * bias));
      }
  }
};

// One group of one block of outputs, and the rows of x that it multiplies. `x` points to the
// group's first input, rows are `k` apart; `tile` is the first of `tiles`.
struct Group {
  const uint8_t* tile;
  int64_t tiles, tile_bytes;
  const float *scales, *biases, *x, *totals;
  int64_t k, groups;

  // Multiplies rows [m, m + kRows), and unpacks each weight where it is used.
  template <int kBits, int kRows>
  void multiply(int64_t m, float* sums) const {
    GroupSums<kRows> found;
    const float* from = x + m * k;
    for (int64_t t = 0; t < tiles; t++, from += kDeep)
#pragma GCC unroll 16
      for (int pair = 0; pair < kPairs; pair++) {
        vec even[kRegisters], odd[kRegisters];
#pragma GCC unroll 4
        for (int part = 0; part < kRegisters; part++)
          unpack<kBits>(tile + t * tile_bytes, pair, part, even[part], odd[part]);
        found.add(from + 2 * pair, k, even, odd);
      }
    found.finish(scales, biases, totals + m * groups, groups, sums + m * kOutputs);
  }

  // Multiplies rows [m, m + kRows) by the weights `q` that `unpack_group` unpacked.
  template <int kRows>
  void multiply_unpacked(int64_t m, const float* q, float* sums) const {
    GroupSums<kRows> found;
    const float* from = x + m * k;
    const int64_t pairs = tiles * kPairs;
    found.add_half(from, k, q, pairs, found.evens);
    found.add_half(from + 1, k, q + pairs * kOutputs, pairs, found.odds);
    found.finish(scales, biases, totals + m * groups, groups, sums + m * kOutputs);
  }

  template <int kBits>
  void multiply_all(int64_t rows, float* unpacked, float* sums) const {
    if (rows <= kFewRows) {
      with_rows<kFewRows>(rows, [&]<int kRows>() { multiply<kBits, kRows>(0, sums); });
      return;
    }
    unpack_group<kBits>(tile, tiles, tile_bytes, unpacked);
    for (int64_t m = 0; m < rows; m += kManyRows)
      with_rows<kManyRows>(rows - m,
                           [&]<int kRows>() { multiply_unpacked<kRows>(m, unpacked, sums); });
  }

  // Calls body<n> for n the smaller of `rows` and kRows.
  template <int kRows, typename Body>
  static SGL_INLINE void with_rows(int64_t rows, const Body& body) {
    if constexpr (kRows > 1)
      if (rows < kRows) return with_rows<kRows - 1>(rows, body);
    body.template operator()<kRows>();
  }
};

// Multiplies any number of rows by one block of outputs. `totals` has the sums of x (rows, groups).
// A row's sums are added in the same order whatever the number of rows.
template <int kBits>
void multiply_block(const PackedWeights& w, int64_t block, const float* x, const float* totals,
                    int64_t rows, float* y) {
  const int64_t groups = w.groups(), tiles = w.group / kDeep;
  thread_local Buffer<float> unpacked, sums;
  unpacked.reserve(w.group * kOutputs);
  sums.reserve(rows * kOutputs);
  std::memset(sums.data(), 0, rows * kOutputs * sizeof(float));
  for (int64_t g = 0; g < groups; g++) {
    const int64_t at = (block * groups + g) * kOutputs;
    const Group group{w.tile(block, g * tiles),
                      tiles,
                      w.tile_bytes(),
                      w.scales + at,
                      w.biases + at,
                      x + g * w.group,
                      totals + g,
                      w.k,
                      groups};
    group.multiply_all<kBits>(rows, unpacked.data(), sums.data());
  }
  for (int64_t m = 0; m < rows; m++) store_block(y + m * w.n, w, block, &sums[m * kOutputs]);
}

// Multiplies x (rows, k) by the weights, to y (rows, n).
template <int kBits>
void multiply_rows(const PackedWeights& w, const float* x, int64_t rows, float* y) {
  std::vector<float> totals(rows * w.groups());
  sum_groups(w, x, rows, totals.data());
  each_range(w.blocks(), 2, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; block++)
      multiply_block<kBits>(w, block, x, totals.data(), rows, y);
  });
}

}  // namespace sgl

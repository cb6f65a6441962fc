// Products with packed weights by vectors. A group's sum of x * q is scaled, and bias times the
// group's sum of x added, all in float32.
#pragma once

#include <cstring>
#include <vector>

#include "buffer.h"
#include "packed.h"
#include "parallel.h"

namespace sgl {

constexpr int kRowsAtOnce = kNative == 16 ? 8 : 3;  // as many as registers hold the sums of

// q of one group, as floats (k, 16): unpacked once for many rows.
template <int kBits>
SGL_INLINE void unpack_group(const uint8_t* tile, int64_t tiles, int64_t tile_bytes, float* to) {
  for (int64_t t = 0; t < tiles; t++, tile += tile_bytes)
#pragma GCC unroll 16
    for (int pair = 0; pair < kPairs; pair++, to += 2 * kLanes)
#pragma GCC unroll 4
      for (int part = 0; part < kNatives; part++) {
        native even, odd;
        unpack<kBits>(tile, pair, part, even, odd);
        store_native(to + part * kNative, even);
        store_native(to + kLanes + part * kNative, odd);
      }
}

// Sums of x * q over one group, for kRows rows and 16 n. Even and odd k are summed apart, so that
// twice as many sums are under way.
template <int kRows>
struct GroupSums {
  native evens[kRows][kNatives] = {}, odds[kRows][kNatives] = {};

  // All even, then all odd: so few values are under way that registers hold them.
  SGL_INLINE void add(const float* x, int64_t k, const native* even, const native* odd) {
#pragma GCC unroll 16
    for (int m = 0; m < kRows; m++)
#pragma GCC unroll 4
      for (int part = 0; part < kNatives; part++) evens[m][part] += x[m * k] * even[part];
#pragma GCC unroll 16
    for (int m = 0; m < kRows; m++)
#pragma GCC unroll 4
      for (int part = 0; part < kNatives; part++) odds[m][part] += x[m * k + 1] * odd[part];
  }

  // Adds scale * q + bias of the group to `sums` (kRows, 16); `totals` are the sums of x.
  SGL_INLINE void finish(const float* scales, const float* biases, const float* totals,
                         int64_t groups, float* sums) const {
#pragma GCC unroll 16
    for (int m = 0; m < kRows; m++)
#pragma GCC unroll 4
      for (int part = 0; part < kNatives; part++) {
        const native scale = load_native(scales + part * kNative);
        const native bias = load_native(biases + part * kNative);
        float* to = sums + m * kLanes + part * kNative;
        store_native(to, load_native(to) + (scale * (evens[m][part] + odds[m][part]) +
                                            totals[m * groups] * bias));
      }
  }
};

// One group of one block of n, for rows of x.
struct Group {
  const uint8_t* tile;
  int64_t tiles, tile_bytes;
  const float *scales, *biases, *x, *totals;
  int64_t k, groups;

  // Rows [m, m + kRows), with each weight unpacked where it is used.
  template <int kBits, int kRows>
  void multiply(int64_t m, float* sums) const {
    GroupSums<kRows> found;
    const float* from = x + m * k;
    for (int64_t t = 0; t < tiles; t++, from += kDeep)
#pragma GCC unroll 16
      for (int pair = 0; pair < kPairs; pair++) {
        native even[kNatives], odd[kNatives];
#pragma GCC unroll 4
        for (int part = 0; part < kNatives; part++)
          unpack<kBits>(tile + t * tile_bytes, pair, part, even[part], odd[part]);
        found.add(from + 2 * pair, k, even, odd);
      }
    found.finish(scales, biases, totals + m * groups, groups, sums + m * kLanes);
  }

  // The same with weights that `unpack_group` unpacked.
  template <int kRows>
  void multiply_unpacked(int64_t m, const float* q, float* sums) const {
    GroupSums<kRows> found;
    const float* from = x + m * k;
    for (int64_t i = 0; i < tiles * kDeep; i += 2, q += 2 * kLanes) {
      native even[kNatives], odd[kNatives];
#pragma GCC unroll 4
      for (int part = 0; part < kNatives; part++) {
        even[part] = load_native(q + part * kNative);
        odd[part] = load_native(q + kLanes + part * kNative);
      }
      found.add(from + i, k, even, odd);
    }
    found.finish(scales, biases, totals + m * groups, groups, sums + m * kLanes);
  }

  template <int kBits>
  void multiply_all(int64_t rows, float* unpacked, float* sums) const {
    if (rows <= kRowsAtOnce) {
      with_rows(rows, [&]<int kRows>() { multiply<kBits, kRows>(0, sums); });
      return;
    }
    unpack_group<kBits>(tile, tiles, tile_bytes, unpacked);
    for (int64_t m = 0; m < rows; m += kRowsAtOnce)
      with_rows(rows - m, [&]<int kRows>() { multiply_unpacked<kRows>(m, unpacked, sums); });
  }

  // Calls body<kRows> for the smaller of `rows` and kRowsAtOnce.
  template <int kRows = kRowsAtOnce, typename Body>
  static SGL_INLINE void with_rows(int64_t rows, const Body& body) {
    if constexpr (kRows > 1)
      if (rows < kRows) return with_rows<kRows - 1>(rows, body);
    body.template operator()<kRows>();
  }
};

// Any number of rows, each with the same sums in the same order however many there are.
template <int kBits>
void multiply_rows(const PackedWeights& w, const float* x, int64_t rows, float* y) {
  const int64_t groups = w.groups(), tiles = w.group / kDeep;
  std::vector<float> totals(rows * groups);
  sum_groups(w, x, rows, totals.data());
  each_range(w.blocks(), 2, [&](int64_t first, int64_t last) {
    thread_local Buffer<float> unpacked, sums;
    unpacked.reserve(w.group * kLanes);
    sums.reserve(rows * kLanes);
    for (int64_t block = first; block < last; block++) {
      std::memset(sums.data(), 0, rows * kLanes * sizeof(float));
      for (int64_t g = 0; g < groups; g++) {
        const int64_t at = (block * groups + g) * kLanes;
        const Group group{w.tile(block, g * tiles), tiles, w.tile_bytes(), w.scales + at,
                          w.biases + at, x + g * w.group, &totals[g], w.k, groups};
        group.multiply_all<kBits>(rows, unpacked.data(), sums.data());
      }
      for (int64_t m = 0; m < rows; m++)
        store_block(y + m * w.n, w, block, load(&sums[m * kLanes]));
    }
  });
}

}  // namespace sgl

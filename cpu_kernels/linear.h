// Products with weights of 4 or 8 bits: y (M, N) = x (M, K) times the transpose of w (N, K), where
// w = scale * q + bias for groups of 32 or more consecutive k. See `packing.py` for the layout.
//
// Few rows: q is multiplied as it is and each group's sum scaled, all in float32. Many rows, where
// the processor multiplies tiles of bfloat16 (AMX): x and w are each split in two bfloat16 halves,
// and three of the four products summed in float32, which leaves out about 2**-17 of a term.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "buffer.h"
#include "parallel.h"
#include "simd.h"

#if defined(__AMX_BF16__) && defined(__AVX512F__)
#define SGL_TILES 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

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

// Weights of k = 2 * pair and 2 * pair + 1, for 16 n.
template <int kBits>
SGL_INLINE void unpack(const uint8_t* tile, int pair, vec& even, vec& odd) {
  uvec words;
  if constexpr (kBits == 4) {  // four pairs in a word
    words = *reinterpret_cast<const uvec_anywhere*>(tile + pair / 4 * 64) >> (4 * (pair % 4));
    even = __builtin_convertvector((ivec)(words & 15), vec);
    odd = __builtin_convertvector((ivec)(words >> 16 & 15), vec);
  } else {
    const auto bytes = *reinterpret_cast<const half_uvec_anywhere*>(tile + pair * 32);
    words = __builtin_convertvector(bytes, uvec);
    even = __builtin_convertvector((ivec)(words & 255), vec);
    odd = __builtin_convertvector((ivec)(words >> 8), vec);
  }
}

SGL_INLINE void store_block(float* y, const PackedWeights& w, int64_t block, vec sums) {
  const int64_t first = block * kLanes, count = std::min<int64_t>(kLanes, w.n - first);
  if (count == kLanes) store(y + first, sums);
  else
    for (int64_t i = 0; i < count; i++) y[first + i] = sums[i];
}

// One block of n for kRows rows; `totals` are the sums of x over each group (rows, groups).
template <int kBits, int kRows>
void multiply_rows(const PackedWeights& w, int64_t block, const float* x, const float* totals,
                   float* y) {
  vec sums[kRows] = {};
  const int64_t groups = w.groups(), tiles = w.group / kDeep;
  for (int64_t g = 0; g < groups; g++) {
    vec evens[kRows] = {}, odds[kRows] = {};
    for (int64_t t = g * tiles; t < (g + 1) * tiles; t++) {
      const uint8_t* tile = w.tile(block, t);
      const float* from = x + t * kDeep;
#pragma GCC unroll 16
      for (int pair = 0; pair < kPairs; pair++) {
        vec even, odd;
        unpack<kBits>(tile, pair, even, odd);
        for (int m = 0; m < kRows; m++) {
          evens[m] += from[m * w.k + 2 * pair] * even;
          odds[m] += from[m * w.k + 2 * pair + 1] * odd;
        }
      }
    }
    const vec scale = load(w.scales + (block * groups + g) * kLanes);
    const vec bias = load(w.biases + (block * groups + g) * kLanes);
    for (int m = 0; m < kRows; m++)
      sums[m] += scale * (evens[m] + odds[m]) + totals[m * groups + g] * bias;
  }
  for (int m = 0; m < kRows; m++) store_block(y + m * w.n, w, block, sums[m]);
}

template <int kBits>
void multiply_few(const PackedWeights& w, const float* x, int64_t rows, float* y) {
  constexpr int kMost = 8;
  const int64_t groups = w.groups();
  std::vector<float> totals(rows * groups);
  for (int64_t m = 0; m < rows; m++)
    for (int64_t g = 0; g < groups; g++) {
      vec total{};
      for (int64_t k = g * w.group; k < (g + 1) * w.group; k += kLanes) total += load(x + m * w.k + k);
      totals[m * groups + g] = sum(total);
    }
  using Multiply = void (*)(const PackedWeights&, int64_t, const float*, const float*, float*);
  constexpr Multiply by_rows[kMost] = {
      multiply_rows<kBits, 1>, multiply_rows<kBits, 2>, multiply_rows<kBits, 3>,
      multiply_rows<kBits, 4>, multiply_rows<kBits, 5>, multiply_rows<kBits, 6>,
      multiply_rows<kBits, 7>, multiply_rows<kBits, 8>};
  each_range(w.blocks(), 2, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; block++)
      for (int64_t m = 0; m < rows; m += kMost) {
        const int64_t count = std::min<int64_t>(kMost, rows - m);
        by_rows[count - 1](w, block, x + m * w.k, &totals[m * groups], y + m * w.n);
      }
  });
}

#ifdef SGL_TILES

constexpr int kTileWords = 256;  // 16 rows of 16 words, each two bfloat16

// Linux gives the tiles' registers to a process that asks.
inline bool tiles_allowed() {
  constexpr int kRequest = 0x1023, kTileData = 18;
  static const bool allowed = syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  return allowed;
}

inline void configure_tiles() {
  struct alignas(64) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  _tile_loadconfig(&config);
}

// The halves of 16 pairs: x = high + low, but for a 2**-17th.
SGL_INLINE void split(vec even, vec odd, uint32_t* high, uint32_t* low) {
  constexpr uint32_t kHalf = 0x8000, kUpper = 0xffff0000;
  const uvec high_even = ((uvec)even + kHalf) & kUpper, high_odd = ((uvec)odd + kHalf) & kUpper;
  const uvec low_even = (uvec)(even - (vec)high_even) + kHalf;
  const uvec low_odd = (uvec)(odd - (vec)high_odd) + kHalf;
  *reinterpret_cast<uvec_anywhere*>(high) = high_even >> 16 | high_odd;
  *reinterpret_cast<uvec_anywhere*>(low) = low_even >> 16 | (low_odd & kUpper);
}

// x in tiles (rows / 16, K / 32) of 16 rows; rows beyond the last are zero.
struct SplitRows {
  void fill(const float* x, int64_t rows, int64_t k) {
    const int64_t deep = k / kDeep, words = (rows + 15) / 16 * deep * kTileWords;
    high.reserve(words);
    low.reserve(words);
    each_range((rows + 15) / 16, 1, [&](int64_t first, int64_t last) {
      for (int64_t at = rows * 16; at < last * 16 * 16; at += 16)  // of each tile, missing rows
        for (int64_t d = 0; d < deep; d++) {
          const int64_t word = (last - 1) * deep * kTileWords + d * kTileWords + at % kTileWords;
          std::memset(&high[word], 0, 64);
          std::memset(&low[word], 0, 64);
        }
      for (int64_t m = first * 16; m < std::min(rows, last * 16); m++)
        for (int64_t d = 0; d < deep; d++) {
          const int64_t at = (m / 16 * deep + d) * kTileWords + m % 16 * 16;
          const float* from = x + m * k + d * kDeep;
          const vec a = load(from), b = load(from + kLanes);
          const vec even = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22,
                                                   24, 26, 28, 30);
          const vec odd = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23,
                                                  25, 27, 29, 31);
          split(even, odd, &high[at], &low[at]);
        }
    });
  }

  Buffer<uint32_t> high, low;
};

// One block of n in tiles (K / 32), scaled.
template <int kBits>
void split_block(const PackedWeights& w, int64_t block, uint32_t* high, uint32_t* low) {
  const int64_t groups = w.groups(), tiles = w.group / kDeep;
  for (int64_t g = 0; g < groups; g++) {
    const vec scale = load(w.scales + (block * groups + g) * kLanes);
    const vec bias = load(w.biases + (block * groups + g) * kLanes);
    for (int64_t t = g * tiles; t < (g + 1) * tiles; t++) {
      const uint8_t* tile = w.tile(block, t);
#pragma GCC unroll 16
      for (int pair = 0; pair < kPairs; pair++) {
        vec even, odd;
        unpack<kBits>(tile, pair, even, odd);
        const int64_t at = t * kTileWords + pair * 16;
        split(even * scale + bias, odd * scale + bias, high + at, low + at);
      }
    }
  }
}

// Two blocks of 16 rows by two of 16 n; `b` holds the two blocks of n, `deep` tiles each.
inline void multiply_tiles(int64_t deep, const uint32_t* a_high, const uint32_t* a_low,
                           const uint32_t* b_high, const uint32_t* b_low, float sums[4][256]) {
  constexpr int kRow = 64;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
#define SGL_MULTIPLY(C)      \
  _tile_dpbf16ps(C, 4, 6);   \
  _tile_dpbf16ps(C, 4, 7);   \
  _tile_dpbf16ps(C, 5, 6);
  for (int64_t d = 0; d < deep; d++) {
    const int64_t here = d * kTileWords, next = (deep + d) * kTileWords;
    _tile_loadd(4, a_high + here, kRow);
    _tile_loadd(5, a_low + here, kRow);
    _tile_loadd(6, b_high + here, kRow);
    _tile_loadd(7, b_low + here, kRow);
    SGL_MULTIPLY(0)
    _tile_loadd(6, b_high + next, kRow);
    _tile_loadd(7, b_low + next, kRow);
    SGL_MULTIPLY(1)
    _tile_loadd(4, a_high + next, kRow);
    _tile_loadd(5, a_low + next, kRow);
    SGL_MULTIPLY(3)
    _tile_loadd(6, b_high + here, kRow);
    _tile_loadd(7, b_low + here, kRow);
    SGL_MULTIPLY(2)
  }
#undef SGL_MULTIPLY
  _tile_stored(0, sums[0], kRow);
  _tile_stored(1, sums[1], kRow);
  _tile_stored(2, sums[2], kRow);
  _tile_stored(3, sums[3], kRow);
}

// The same for one block of rows.
inline void multiply_tile_row(int64_t deep, const uint32_t* a_high, const uint32_t* a_low,
                              const uint32_t* b_high, const uint32_t* b_low, float sums[4][256]) {
  constexpr int kRow = 64;
  _tile_zero(0);
  _tile_zero(1);
  for (int64_t d = 0; d < deep; d++) {
    const int64_t here = d * kTileWords, next = (deep + d) * kTileWords;
    _tile_loadd(4, a_high + here, kRow);
    _tile_loadd(5, a_low + here, kRow);
    _tile_loadd(6, b_high + here, kRow);
    _tile_loadd(7, b_low + here, kRow);
    _tile_loadd(2, b_high + next, kRow);
    _tile_loadd(3, b_low + next, kRow);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 2);
    _tile_dpbf16ps(0, 4, 7);
    _tile_dpbf16ps(1, 4, 3);
    _tile_dpbf16ps(0, 5, 6);
    _tile_dpbf16ps(1, 5, 2);
  }
  _tile_stored(0, sums[0], kRow);
  _tile_stored(1, sums[1], kRow);
}

template <int kBits>
void multiply_many(const PackedWeights& w, const float* x, int64_t rows, float* y) {
  constexpr int64_t kCached = 1 << 20;  // bytes of x that stay near while all of w goes by
  thread_local SplitRows caller_x;
  SplitRows& split_x = caller_x;  // the caller's, for the other threads
  split_x.fill(x, rows, w.k);
  const int64_t deep = w.k / kDeep, row_blocks = (rows + 15) / 16, pairs = (w.blocks() + 1) / 2;
  const int64_t step = std::max<int64_t>(2, kCached / (deep * kTileWords * 8) / 2 * 2);
  for (int64_t from = 0; from < row_blocks; from += step) {
    const int64_t until = std::min(row_blocks, from + step);
    each_range(pairs, 1, [&](int64_t first, int64_t last) {
      thread_local Buffer<uint32_t> high, low;
      high.reserve(2 * deep * kTileWords);
      low.reserve(2 * deep * kTileWords);
      alignas(64) float sums[4][256];
      configure_tiles();
      for (int64_t pair = first; pair < last; pair++) {
        const int64_t here = std::min<int64_t>(2, w.blocks() - 2 * pair);
        for (int64_t i = 0; i < here; i++)
          split_block<kBits>(w, 2 * pair + i, &high[i * deep * kTileWords], &low[i * deep * kTileWords]);
        for (int64_t m = from; m < until; m += 2) {
          const int64_t at = m * deep * kTileWords;
          const bool both = m + 1 < until;
          (both ? multiply_tiles : multiply_tile_row)(deep, &split_x.high[at], &split_x.low[at],
                                                      high.data(), low.data(), sums);
          const int64_t end = std::min(rows, (m + 1 + both) * 16);
          for (int64_t row = m * 16; row < end; row++)
            for (int64_t i = 0; i < here; i++)
              store_block(y + row * w.n, w, 2 * pair + i,
                          load(&sums[(row / 16 - m) * 2 + i][row % 16 * 16]));
        }
      }
      _tile_release();
    });
  }
}

#endif  // SGL_TILES

constexpr int64_t kFew = 4;  // rows up to which tiles cost more than they save

inline void multiply(const PackedWeights& w, const float* x, int64_t rows, float* y) {
#ifdef SGL_TILES
  if (rows > kFew && tiles_allowed()) {
    (w.bits == 4 ? multiply_many<4> : multiply_many<8>)(w, x, rows, y);
    return;
  }
#endif
  (w.bits == 4 ? multiply_few<4> : multiply_few<8>)(w, x, rows, y);
}

}  // namespace sgl

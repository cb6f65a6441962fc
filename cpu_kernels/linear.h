// Products with weights of 4 or 8 bits: y (M, N) = x (M, K) times the transpose of w (N, K), where
// w = scale * q + bias for groups of 32 or more consecutive k. See `packing.py` for the layout.
//
// A group's sum of x * q is scaled, and bias times the group's sum of x added, all in float32. Many
// rows go through the processor's tiles of bfloat16 (AMX) where it has them: q is an integer below
// 256 and so exact in bfloat16, and x is split in three parts of 8 bits each, which is all of it.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "buffer.h"
#include "parallel.h"
#include "simd.h"

#if defined(__AMX_BF16__) && defined(__AVX512BW__)
#define SGL_TILES 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sgl {

constexpr int kDeep = 32;   // k of a tile
constexpr int kPairs = 16;  // pairs of neighbouring k in it
constexpr int kRowsAtOnce = kNative == 16 ? 8 : 3;  // as many as registers hold the sums of

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

// Of each row over each group (rows, groups).
inline void sum_groups(const PackedWeights& w, const float* x, int64_t rows, float* totals) {
  for (int64_t m = 0; m < rows; m++)
    for (int64_t g = 0; g < w.groups(); g++) {
      vec total{};
      for (int64_t k = g * w.group; k < (g + 1) * w.group; k += kLanes)
        total += load(x + m * w.k + k);
      totals[m * w.groups() + g] = sum(total);
    }
}

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

// x in tiles (rows / 16, K / 32) of 16 rows, three for each: x is their sum. Rows beyond the last
// are zero.
class SplitRows {
 public:
  void fill(const PackedWeights& w, const float* x, int64_t rows) {
    deep_ = w.k / kDeep;
    groups_ = w.groups();
    words_.reserve((rows + 15) / 16 * deep_ * kParts * kTileWords);
    totals_.reserve((rows + 15) / 16 * 16 * groups_);
    each_range((rows + 15) / 16, 1, [&](int64_t first, int64_t last) {
      for (int64_t m = first * 16; m < last * 16; m++) {
        if (m < rows) sum_groups(w, x + m * w.k, 1, &totals_[m * groups_]);
        for (int64_t d = 0; d < deep_; d++) {
          uint32_t* to = &words_[(m / 16 * deep_ + d) * kParts * kTileWords + m % 16 * 16];
          if (m < rows) split(x + m * w.k + d * kDeep, to);
          else
            for (int part = 0; part < kParts; part++) std::memset(to + part * kTileWords, 0, 64);
        }
      }
    });
  }

  const uint32_t* tiles(int64_t row_block, int64_t deep) const {
    return &words_[(row_block * deep_ + deep) * kParts * kTileWords];
  }
  const float* totals(int64_t row) const { return &totals_[row * groups_]; }

  static constexpr int kParts = 3;

 private:
  static SGL_INLINE void split(const float* x, uint32_t* to) {
    constexpr uint32_t kHalf = 0x8000, kUpper = 0xffff0000;
    const vec a = load(x), b = load(x + kLanes);
    vec even = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28,
                                       30);
    vec odd = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29,
                                      31);
    for (int part = 0; part < kParts; part++) {
      const uvec even_part = ((uvec)even + kHalf) & kUpper, odd_part = ((uvec)odd + kHalf) & kUpper;
      *reinterpret_cast<uvec_anywhere*>(to + part * kTileWords) = even_part >> 16 | odd_part;
      even -= (vec)even_part;
      odd -= (vec)odd_part;
    }
  }

  int64_t deep_ = 0, groups_ = 0;
  Buffer<uint32_t> words_;
  Buffer<float> totals_;
};

// The q of one block of n in tiles, from tile `first` to `last` of its K / 32.
template <int kBits>
void widen(const PackedWeights& w, int64_t block, int64_t first, int64_t last, uint32_t* to) {
  // bfloat16 of 0 to 15, twice: a look-up takes five bits, of which the fifth is the next q's
  alignas(64) constexpr uint16_t kLevels[32] = {
      0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120,
      0x4130, 0x4140, 0x4150, 0x4160, 0x4170, 0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0,
      0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120, 0x4130, 0x4140, 0x4150, 0x4160, 0x4170};
  for (int64_t d = first; d < last; d++) {
    const uint8_t* tile = w.tile(block, d);
    if constexpr (kBits == 4) {
      const __m512i levels = _mm512_load_si512(kLevels);
      for (int word = 0; word < 4; word++) {
        __m512i q = _mm512_loadu_si512(tile + word * 64);
        for (int pair = 0; pair < 4; pair++, to += kLanes, q = _mm512_srli_epi16(q, 4))
          _mm512_store_si512(to, _mm512_permutexvar_epi16(q, levels));
      }
    } else {  // integers below 256: the lower half of a float is zero
      for (int pair = 0; pair < kPairs; pair++, to += kLanes) {
        native even, odd;  // with tiles a register has 16 lanes
        unpack<kBits>(tile, pair, 0, even, odd);
        *reinterpret_cast<uvec_anywhere*>(to) = (uvec)even >> 16 | (uvec)odd;
      }
    }
  }
}

// Sixteen rows by four blocks of n: x * q summed over `tiles` tiles; q of the blocks is `apart`.
// Four products are under way at once, since one takes three times as long as it keeps the unit
// busy.
inline void multiply_tiles(int64_t tiles, const uint32_t* x, const uint32_t* q, int64_t apart,
                           float (*products)[kTileWords]) {
  constexpr int kRow = 64;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t t = 0; t < tiles; t++, q += kTileWords)
    for (int part = 0; part < SplitRows::kParts; part++, x += kTileWords) {
      _tile_loadd(4, x, kRow);
      _tile_loadd(5, q, kRow);
      _tile_dpbf16ps(0, 4, 5);
      _tile_loadd(6, q + apart, kRow);
      _tile_dpbf16ps(1, 4, 6);
      _tile_loadd(7, q + 2 * apart, kRow);
      _tile_dpbf16ps(2, 4, 7);
      _tile_loadd(5, q + 3 * apart, kRow);
      _tile_dpbf16ps(3, 4, 5);
    }
  _tile_stored(0, products[0], kRow);
  _tile_stored(1, products[1], kRow);
  _tile_stored(2, products[2], kRow);
  _tile_stored(3, products[3], kRow);
}

// One block of n of sixteen rows: bias times the groups' sums.
SGL_INLINE void add_biases(const SplitRows& x, int64_t row, const float* biases, int64_t groups,
                           float* sums) {
  constexpr int kRows = 8;
  for (int m = 0; m < 16; m += kRows) {
    vec totals[kRows];
    for (int i = 0; i < kRows; i++) totals[i] = load(sums + (m + i) * kLanes);
    for (int64_t g = 0; g < groups; g++) {
      const vec bias = load(biases + g * kLanes);
      for (int i = 0; i < kRows; i++) totals[i] += x.totals(row + m + i)[g] * bias;
    }
    for (int i = 0; i < kRows; i++) store(sums + (m + i) * kLanes, totals[i]);
  }
}

// Four blocks of n of the rows of blocks [from, until).
template <int kBits>
void multiply_blocks(const PackedWeights& w, const SplitRows& x, int64_t first_block, int64_t from,
                     int64_t until, int64_t rows, float* y) {
  constexpr int64_t kNear = 6;  // tiles of k at a time: four blocks of those stay in L1
  const int64_t tiles = w.group / kDeep, groups = w.groups();
  const int64_t step = std::max<int64_t>(1, kNear / tiles);  // groups at a time
  const int64_t apart = step * tiles * kTileWords;
  const int64_t here = std::min<int64_t>(4, w.blocks() - first_block);
  thread_local Buffer<uint32_t> q;
  thread_local Buffer<float> all_sums;
  q.reserve(4 * apart);
  all_sums.reserve((until - from) * 4 * kTileWords);
  std::memset(all_sums.data(), 0, (until - from) * 4 * kTileWords * sizeof(float));
  alignas(64) float products[4][kTileWords];
  for (int64_t start = 0; start < groups; start += step) {
    const int64_t end = std::min(groups, start + step);
    for (int64_t i = 0; i < here; i++)
      widen<kBits>(w, first_block + i, start * tiles, end * tiles, &q[i * apart]);
    for (int64_t m = from; m < until; m++)
      for (int64_t g = start; g < end; g++) {
        multiply_tiles(tiles, x.tiles(m, g * tiles), &q[(g - start) * tiles * kTileWords], apart,
                       products);
        for (int64_t i = 0; i < here; i++) {
          const vec scale = load(w.scales + ((first_block + i) * groups + g) * kLanes);
          float* sums = &all_sums[((m - from) * 4 + i) * kTileWords];
          for (int at = 0; at < kTileWords; at += kLanes)
            store(sums + at, load(sums + at) + scale * load(products[i] + at));
        }
      }
  }
  for (int64_t m = from; m < until; m++)
    for (int64_t i = 0; i < here; i++) {
      float* sums = &all_sums[((m - from) * 4 + i) * kTileWords];
      add_biases(x, m * 16, w.biases + (first_block + i) * groups * kLanes, groups, sums);
      for (int64_t row = 0; row < std::min<int64_t>(16, rows - m * 16); row++)
        store_block(y + (m * 16 + row) * w.n, w, first_block + i, load(sums + row * kLanes));
    }
}

template <int kBits>
void multiply_many(const PackedWeights& w, const float* x, int64_t rows, float* y) {
  constexpr int64_t kCached = 1 << 20;  // bytes of x that stay near while all of w goes by
  thread_local SplitRows caller_x;
  SplitRows& split_x = caller_x;  // the caller's, for the other threads
  split_x.fill(w, x, rows);
  const int64_t row_blocks = (rows + 15) / 16, quads = (w.blocks() + 3) / 4;
  const int64_t bytes = w.k / kDeep * SplitRows::kParts * kTileWords * sizeof(uint32_t);
  const int64_t step = std::max<int64_t>(1, kCached / bytes);
  const int64_t steps = (row_blocks + step - 1) / step;
  each_range(quads * steps, 1, [&](int64_t first, int64_t last) {
    configure_tiles();
    for (int64_t i = first; i < last; i++) {
      const int64_t from = i / quads * step, until = std::min(row_blocks, from + step);
      multiply_blocks<kBits>(w, split_x, i % quads * 4, from, until, rows, y);
    }
    _tile_release();
  });
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
  (w.bits == 4 ? multiply_rows<4> : multiply_rows<8>)(w, x, rows, y);
}

}  // namespace sgl

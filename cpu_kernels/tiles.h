// Products with packed weights by the processor's matrix unit (AMX), which multiplies tiles of
// bfloat16. q is an integer below 256 and so exact in bfloat16. x is split into three bfloat16 of 8
// bits each, whose sum is x exactly, so that nothing of float32 is lost.
#pragma once

#include "buffer.h"
#include "packed.h"
#include "parallel.h"

#if defined(__AMX_BF16__) && defined(__AVX512BW__)
#define SGL_TILES 1
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace sgl {

static_assert(kLanes == kOutputs);  // with AMX there is AVX-512

typedef uint32_t uvec __attribute__((vector_size(64)));
typedef uint32_t uvec_anywhere __attribute__((vector_size(64), aligned(1)));

constexpr int kTileWords = 256;  // 16 rows of 16 words; a word is two bfloat16

// True if Linux lets this process use the tile registers, which a process must ask for once.
inline bool tiles_allowed() {
  constexpr int kRequest = 0x1023, kTileData = 18;
  static const bool allowed = syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  return allowed;
}

// Sets up eight tile registers of 16 rows of 64 bytes on this thread.
inline void configure_tiles() {
  struct alignas(64) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  _tile_loadconfig(&config);
}

// x (rows, K) split into bfloat16 tiles (rows / 16, K / 32, 3), each (16 rows, 32 inputs). The
// three tiles at one place add up to x there. Rows beyond the last are zero.
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

// Converts tiles [first, last) of the K / 32 tiles of one block of outputs to bfloat16.
template <int kBits>
void widen(const PackedWeights& w, int64_t block, int64_t first, int64_t last, uint32_t* to) {
  // The integers 0 to 15 in bfloat16, twice. The look-up uses five bits of a word, of which the
  // fifth belongs to the next q: with the second copy it makes no difference.
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
    } else {  // a float that is an integer below 256 has zeros in its lower half
      for (int pair = 0; pair < kPairs; pair++, to += kLanes) {
        vec even, odd;
        unpack<kBits>(tile, pair, 0, even, odd);
        *reinterpret_cast<uvec_anywhere*>(to) = (uvec)even >> 16 | (uvec)odd;
      }
    }
  }
}

// Multiplies 16 rows by four blocks of outputs, and sums x * q over `tiles` tiles. The q of the
// next block begins `block_words` words after that of the one before. The four products are
// interleaved because the unit can start a product long before the one before it is finished.
inline void multiply_tiles(int64_t tiles, const uint32_t* x, const uint32_t* q, int64_t block_words,
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
      _tile_loadd(6, q + block_words, kRow);
      _tile_dpbf16ps(1, 4, 6);
      _tile_loadd(7, q + 2 * block_words, kRow);
      _tile_dpbf16ps(2, 4, 7);
      _tile_loadd(5, q + 3 * block_words, kRow);
      _tile_dpbf16ps(3, 4, 5);
    }
  _tile_stored(0, products[0], kRow);
  _tile_stored(1, products[1], kRow);
  _tile_stored(2, products[2], kRow);
  _tile_stored(3, products[3], kRow);
}

// Adds each group's bias times the group's sum of x to `sums` (16 rows, 16 outputs) of one block.
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

// Multiplies the row blocks [from, until), of 16 rows each, by the four blocks of outputs that
// begin with `first_block`.
template <int kBits>
void multiply_blocks(const PackedWeights& w, const SplitRows& x, int64_t first_block, int64_t from,
                     int64_t until, int64_t rows, float* y) {
  constexpr int64_t kNear = 6;  // tiles of inputs at a time; those of four blocks stay in L1
  const int64_t tiles = w.group / kDeep, groups = w.groups();
  const int64_t step = std::max<int64_t>(1, kNear / tiles);  // groups at a time
  const int64_t block_words = step * tiles * kTileWords;
  const int64_t here = std::min<int64_t>(4, w.blocks() - first_block);
  thread_local Buffer<uint32_t> q;
  thread_local Buffer<float> all_sums;
  q.reserve(4 * block_words);
  all_sums.reserve((until - from) * 4 * kTileWords);
  std::memset(all_sums.data(), 0, (until - from) * 4 * kTileWords * sizeof(float));
  alignas(64) float products[4][kTileWords];
  for (int64_t start = 0; start < groups; start += step) {
    const int64_t end = std::min(groups, start + step);
    for (int64_t i = 0; i < here; i++)
      widen<kBits>(w, first_block + i, start * tiles, end * tiles, &q[i * block_words]);
    for (int64_t m = from; m < until; m++)
      for (int64_t g = start; g < end; g++) {
        multiply_tiles(tiles, x.tiles(m, g * tiles), &q[(g - start) * tiles * kTileWords],
                       block_words, products);
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
        store_block(y + (m * 16 + row) * w.n, w, first_block + i, sums + row * kLanes);
    }
}

// Multiplies x (rows, k) by the weights, to y (rows, n).
template <int kBits>
void multiply_many(const PackedWeights& w, const float* x, int64_t rows, float* y) {
  constexpr int64_t kCached = 1 << 20;  // bytes of x that stay in L2 while all of w is read
  thread_local SplitRows caller_x;
  SplitRows& split_x = caller_x;  // the loop's other threads read the caller's, not their own
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

}  // namespace sgl

#endif

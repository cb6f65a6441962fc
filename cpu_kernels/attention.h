// Attention of new tokens to keys and values at their place in memory: in the KV pool, by slot, and
// in the arrays of the step itself. The softmax is computed block by block of keys with a running
// maximum (flash attention, arXiv 2205.14135). Queries that attend to the same keys share the work
// of loading and transposing a block.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "buffer.h"
#include "lines.h"
#include "parallel.h"
#include "simd.h"

namespace sgl {

constexpr int kBlock = 64;  // keys at a time
constexpr int kBlockVecs = kBlock / kLanes;
constexpr float kMasked = -1e38f;     // score of a masked key
constexpr float kNoMaximum = -1e30f;  // running maximum before the first key

// Widths and options of one layer's attention.
struct Heads {
  int64_t query_heads, kv_heads;
  int64_t key_dim, value_dim;  // each a multiple of 16
  float scale;
  int64_t window;      // 0: none
  float softcap;       // 0: none
  const float* sinks;  // (query_heads,) or null
  int64_t group() const { return query_heads / kv_heads; }
};

// Consecutive keys of one sequence. Key i is row slots[first + i] of `keys` and `values`, or row
// first + i if there are no slots.
struct Stretch {
  const Lines* keys;
  const Lines* values;
  const int32_t* slots;
  int64_t first;
  int64_t count;
  int64_t position;  // of the first key

  int64_t row(int64_t i) const { return slots ? slots[first + i] : first + i; }
};

// Up to 64 keys and values of one head: keys transposed to (key_dim, kBlock), values as rows.
class Block {
 public:
  explicit Block(const Heads& heads)
      : key_dim_(heads.key_dim), value_dim_(heads.value_dim), keys_(key_dim_ * kBlock),
        key_copies_(key_dim_ * kLanes), value_copies_(value_dim_ * kBlock) {}

  int64_t count = 0, position = 0;

  const float* keys(int64_t d) const { return &keys_[d * kBlock]; }
  const float* values(int64_t i) const { return values_[i]; }

  // Loads up to kBlock keys of the stretch, and their values, from key number `start` on.
  void load_from(const Stretch& from, int64_t start, int64_t head) {
    count = std::min<int64_t>(kBlock, from.count - start);
    position = from.position + start;
    const float* lines[kLanes];
    for (int64_t i = 0; i < count; i += kLanes) {
      const int64_t here = std::min<int64_t>(kLanes, count - i);
      for (int64_t j = 0; j < kLanes; j++)  // lanes past the last key repeat it
        lines[j] = from.keys->read(from.row(start + i + std::min(j, here - 1)), head, key_dim_,
                                   &key_copies_[j * key_dim_]);
      for (int64_t d = 0; d < key_dim_; d += kLanes) {
        vec rows[kLanes];
        for (int j = 0; j < kLanes; j++) rows[j] = load(lines[j] + d);
        transpose(rows);
        for (int j = 0; j < kLanes; j++) store(&keys_[(d + j) * kBlock + i], rows[j]);
      }
    }
    for (int64_t i = 0; i < count; i++)
      values_[i] = from.values->read(from.row(start + i), head, value_dim_,
                                     &value_copies_[i * value_dim_]);
  }

 private:
  int64_t key_dim_, value_dim_;
  Buffer<float> keys_, key_copies_, value_copies_;
  const float* values_[kBlock];
};

// Queries that share a KV head, with the running maximum, sum of weights and weighted sum of values
// over the keys so far.
class Tile {
 public:
  Tile(const Heads& heads, int64_t head, int64_t queries)
      : heads_(heads), head_(head), block_(heads), q_(queries * heads.key_dim),
        weights_(queries * kBlock), out_(queries * heads.value_dim), peaks_(queries, kNoMaximum),
        masses_(queries * kLanes), positions_(queries) {}

  // Sets the vector and the position of one query.
  void set(int64_t query, const float* q, int64_t position) {
    std::memcpy(&q_[query * heads_.key_dim], q, heads_.key_dim * sizeof(float));
    positions_[query] = position;
  }

  // Attends with queries [first, last) to the keys of a stretch, as far as position and window
  // allow.
  void attend(const Stretch& keys, int64_t first, int64_t last) {
    if (first == last) return;
    const auto [low, high] = std::minmax_element(&positions_[first], &positions_[last]);
    int64_t start = 0, end = std::min(keys.count, *high + 1 - keys.position);
    if (heads_.window) start = std::max<int64_t>(0, *low + 1 - heads_.window - keys.position);
    for (; start < end; start += kBlock) {
      Stretch part = keys;
      part.count = end;
      block_.load_from(part, start, head_);
      score(first, last);
      weigh(first, last, *low, *high);
      add_values(first, last);
    }
  }

  // Writes the attention output (value_dim,) of one query, which has the query head `head`.
  void finish(int64_t query, int64_t head, float* out) {
    float mass = sum(load(&masses_[query * kLanes]));
    if (heads_.sinks) mass += std::exp(heads_.sinks[head] - peaks_[query]);
    const float* sums = &out_[query * heads_.value_dim];
    for (int64_t d = 0; d < heads_.value_dim; d++) out[d] = sums[d] / mass;
  }

 private:
  // Calls f(query, n) for consecutive queries, n at a time: kSumRows as long as possible.
  template <typename F>
  static void by_sum_rows(int64_t first, int64_t last, const F& f) {
    for (; first + kSumRows <= last; first += kSumRows)
      f(first, std::integral_constant<int, kSumRows>{});
    switch (last - first) {
      case 5: return f(first, std::integral_constant<int, 5>{});
      case 4: return f(first, std::integral_constant<int, 4>{});
      case 3: return f(first, std::integral_constant<int, 3>{});
      case 2: return f(first, std::integral_constant<int, 2>{});
      case 1: return f(first, std::integral_constant<int, 1>{});
    }
  }

  // Writes the dot products of queries and all keys of the block to the weights.
  void score(int64_t first, int64_t last) {
    by_sum_rows(first, last, [&](int64_t query, auto n) {
      constexpr int kQueries = n, kVecs = kSumRegisters;
      const float* q = &q_[query * heads_.key_dim];
      for (int64_t at = 0; at < kBlock; at += kVecs * kLanes) {
        vec sums[kQueries][kVecs] = {};
        for (int64_t d = 0; d < heads_.key_dim; d++) {
          const float* keys = block_.keys(d) + at;
          vec k[kVecs];
          for (int v = 0; v < kVecs; v++) k[v] = load(keys + v * kLanes);
#pragma GCC unroll 6
          for (int i = 0; i < kQueries; i++)
            for (int v = 0; v < kVecs; v++) sums[i][v] += q[i * heads_.key_dim + d] * k[v];
        }
        for (int i = 0; i < kQueries; i++)
          for (int v = 0; v < kVecs; v++)
            store(&weights_[(query + i) * kBlock + at + v * kLanes], sums[i][v]);
      }
    });
  }

  // Turns scores into weights of the softmax, and rescales earlier sums to a new maximum. `low` and
  // `high` are the queries' least and greatest position.
  void weigh(int64_t first, int64_t last, int64_t low, int64_t high) {
    const int64_t begin = block_.position, end = begin + block_.count - 1;
    const bool unmasked = block_.count == kBlock && end <= low &&
                          (!heads_.window || high - begin < heads_.window);
    const ivec lanes = lane_numbers();
    for (int64_t query = first; query < last; query++) {
      float* row = &weights_[query * kBlock];
      vec scores[kBlockVecs], peak = all(kMasked);
      for (int v = 0; v < kBlockVecs; v++) {
        vec s = load(row + v * kLanes) * heads_.scale;
        if (heads_.softcap)
          s = heads_.softcap * (1 - 2 / (exponential(s * (2 / heads_.softcap)) + 1));
        if (!unmasked) {
          const ivec distance =  // from each key to the query
              (int)(positions_[query] - begin - v * kLanes) - lanes;
          ivec seen = (distance >= 0) & (lanes < (int)(block_.count - v * kLanes));
          if (heads_.window) seen &= distance < (int)heads_.window;
          s = seen ? s : all(kMasked);
        }
        scores[v] = s;
        peak = larger(peak, s);
      }
      const float before = peaks_[query], now = std::max(before, largest(peak));
      if (now > before) {
        peaks_[query] = now;
        const float kept = before == kNoMaximum ? 0.0f : std::exp(before - now);
        store(&masses_[query * kLanes], load(&masses_[query * kLanes]) * kept);
        float* out = &out_[query * heads_.value_dim];
        for (int64_t d = 0; d < heads_.value_dim; d += kLanes) store(out + d, load(out + d) * kept);
      }
      vec mass = load(&masses_[query * kLanes]);
      for (int v = 0; v < kBlockVecs; v++) {
        const vec weight = exponential(scores[v] - now);
        mass += weight;
        store(row + v * kLanes, weight);
      }
      store(&masses_[query * kLanes], mass);
    }
  }

  // Adds the block's values, weighted, to the sums.
  void add_values(int64_t first, int64_t last) {
    constexpr int kVecs = kSumRegisters;
    int64_t d = 0;
    for (; d + kVecs * kLanes <= heads_.value_dim; d += kVecs * kLanes)
      add_columns<kVecs>(first, last, d);
    for (; d < heads_.value_dim; d += kLanes) add_columns<1>(first, last, d);
  }

  // Adds as many columns of the values as kVecs registers hold, from column `d` on.
  template <int kVecs>
  void add_columns(int64_t first, int64_t last, int64_t d) {
    by_sum_rows(first, last, [&](int64_t query, auto n) {
      constexpr int kQueries = n;
      vec sums[kQueries][kVecs];
      float* out = &out_[query * heads_.value_dim + d];
      for (int i = 0; i < kQueries; i++)
        for (int v = 0; v < kVecs; v++) sums[i][v] = load(out + i * heads_.value_dim + v * kLanes);
      const float* weights = &weights_[query * kBlock];
      for (int64_t key = 0; key < block_.count; key++) {
        const float* values = block_.values(key) + d;
        vec x[kVecs];
        for (int v = 0; v < kVecs; v++) x[v] = load(values + v * kLanes);
#pragma GCC unroll 6
        for (int i = 0; i < kQueries; i++)
          for (int v = 0; v < kVecs; v++) sums[i][v] += weights[i * kBlock + key] * x[v];
      }
      for (int i = 0; i < kQueries; i++)
        for (int v = 0; v < kVecs; v++) store(out + i * heads_.value_dim + v * kLanes, sums[i][v]);
    });
  }

  const Heads& heads_;
  int64_t head_;
  Block block_;
  Buffer<float> q_, weights_;
  std::vector<float> out_, peaks_, masses_;
  std::vector<int64_t> positions_;
};

// Prefill chunks. Each row of new tokens attends to its prefix in the pool and causally to itself.
// `table` (rows, 4) has for each row: index of its first slot, prefix length, its first token, its
// number of tokens.
struct Chunks {
  const int32_t *slots, *table;
  int64_t rows;
  Lines pool_keys, pool_values, new_keys, new_values;
};

// q is (tokens, query_heads, key_dim), `out` (tokens, query_heads, value_dim).
inline void extend_attention(const Heads& heads, const Chunks& work, const Lines& q, float* out) {
  constexpr int64_t kQueries = 96;  // queries of a tile: tokens times query heads of a KV head
  struct Item {
    int64_t row, first, last;
  };
  std::vector<Item> items;
  const int64_t step = std::max<int64_t>(1, kQueries / heads.group());
  for (int64_t row = 0; row < work.rows; row++)
    for (int64_t t = 0, tokens = work.table[4 * row + 3]; t < tokens; t += step)
      items.push_back({row, t, std::min(tokens, t + step)});
  const int64_t count = items.size();
  Threads::shared().each(count * heads.kv_heads, [&](int64_t i) {
    const Item& item = items[count - 1 - i / heads.kv_heads];  // the longest first
    const int64_t head = i % heads.kv_heads, group = heads.group();
    const int32_t* row = work.table + 4 * item.row;
    const int64_t prefix = row[1], begin = row[2];
    Tile tile(heads, head, (item.last - item.first) * group);
    for (int64_t t = item.first; t < item.last; t++)
      for (int64_t g = 0; g < group; g++)
        tile.set((t - item.first) * group + g, q.at(begin + t, head * group + g), prefix + t);
    const int64_t all = (item.last - item.first) * group;
    tile.attend({&work.pool_keys, &work.pool_values, work.slots, row[0], prefix, 0}, 0, all);
    tile.attend({&work.new_keys, &work.new_values, nullptr, begin, row[3], prefix}, 0, all);
    for (int64_t t = item.first; t < item.last; t++)
      for (int64_t g = 0; g < group; g++) {
        const int64_t h = head * group + g;
        tile.finish((t - item.first) * group + g, h,
                    out + ((begin + t) * heads.query_heads + h) * heads.value_dim);
      }
  });
}

// A decode step. Each row has a tail of new tokens. `length` of its `width` columns are filled; the
// last `tokens` of these are the queries. They attend to the spans that the row shares with its
// neighbours, to the row's own prefix, and causally to the tail. `table` (rows, 4) has for each
// row: index of its first slot, the position of that slot, the position of its first tail column,
// 0. `spans` (span_count, 5) has for each span: first row, end row, index of its first slot,
// position of its first key, number of keys.
struct Decode {
  const int32_t *slots, *table, *spans;
  int64_t rows, span_count, tokens, width, length;
  Lines pool_keys, pool_values, tail_keys, tail_values;
};

// q is (rows * tokens, query_heads, key_dim), `out` (rows * tokens, query_heads, value_dim).
inline void decode_attention(const Heads& heads, const Decode& work, const Lines& q, float* out) {
  constexpr int64_t kRows = 16;  // rows that share the loading of a span
  const int64_t pieces = 4 * Threads::shared().count();
  const int64_t step = std::clamp<int64_t>(work.rows * heads.kv_heads / pieces, 1, kRows);
  const int64_t blocks = (work.rows + step - 1) / step;
  const int64_t group = heads.group(), queries = work.tokens * group;
  Threads::shared().each(blocks * heads.kv_heads, [&](int64_t i) {
    const int64_t head = i % heads.kv_heads;
    const int64_t first = i / heads.kv_heads * step, last = std::min(work.rows, first + step);
    Tile tile(heads, head, (last - first) * queries);
    const auto each_query = [&](const auto& f) {
      for (int64_t row = first; row < last; row++)
        for (int64_t t = 0; t < work.tokens; t++)
          for (int64_t g = 0; g < group; g++)
            f((row - first) * queries + t * group + g, row, t, head * group + g);
    };
    each_query([&](int64_t query, int64_t row, int64_t t, int64_t h) {
      const int64_t position = work.table[4 * row + 2] + work.length - work.tokens + t;
      tile.set(query, q.at(row * work.tokens + t, h), position);
    });
    for (const int32_t* span = work.spans; span < work.spans + 5 * work.span_count; span += 5) {
      const int64_t from = std::max<int64_t>(first, span[0]);
      const int64_t until = std::min<int64_t>(last, span[1]);
      if (from < until)
        tile.attend({&work.pool_keys, &work.pool_values, work.slots, span[2], span[4], span[3]},
                    (from - first) * queries, (until - first) * queries);
    }
    for (int64_t row = first; row < last; row++) {
      const int32_t* at = work.table + 4 * row;
      const int64_t mine = (row - first) * queries;
      tile.attend({&work.pool_keys, &work.pool_values, work.slots, at[0], at[2] - at[1], at[1]},
                  mine, mine + queries);
      tile.attend(
          {&work.tail_keys, &work.tail_values, nullptr, row * work.width, work.length, at[2]}, mine,
          mine + queries);
    }
    each_query([&](int64_t query, int64_t row, int64_t t, int64_t h) {
      tile.finish(query, h,
                  out + ((row * work.tokens + t) * heads.query_heads + h) * heads.value_dim);
    });
  });
}

}  // namespace sgl

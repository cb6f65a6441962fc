// Attention of new tokens over keys where they lie: in the pool by slot, then in the step's own
// arrays. Softmax goes block by block of keys with a running maximum (flash attention, arXiv
// 2205.14135); a block that several queries see is read and turned once for all of them.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "buffer.h"
#include "parallel.h"
#include "simd.h"

namespace sgl {

constexpr int kBlock = 64;          // keys at a time
constexpr int kBlockVecs = kBlock / kLanes;
constexpr float kUnseen = -1e38f;   // score of a masked key
constexpr float kNothing = -1e30f;  // maximum before the first key

struct Heads {
  int64_t query_heads, kv_heads, dim;
  float scale;
  int64_t window;   // 0: none
  float softcap;    // 0: none
  const float* sinks;  // (query_heads,) or null
  int64_t group() const { return query_heads / kv_heads; }
};

// Keys or values (n, kv_heads, dim) of one layer: floats, or int8 with a float16 scale a head.
struct Lines {
  const float* floats = nullptr;
  const int8_t* levels = nullptr;
  const _Float16* scales = nullptr;
  int64_t stride = 0;  // elements from one n to the next
};

// Keys that follow each other in a sequence. Without slots they lie one after another from `first`.
struct Stretch {
  const Lines* keys;
  const Lines* values;
  const int32_t* slots;
  int64_t first;
  int64_t count;
  int64_t position;  // of the first key
};

// A block of keys of one head: turned to (dim, kBlock); values as rows.
class Block {
 public:
  explicit Block(int64_t dim) : dim_(dim), keys_(dim * kBlock), copies_(dim * kBlock) {}

  int64_t count = 0, position = 0;

  const float* keys(int64_t d) const { return &keys_[d * kBlock]; }
  const float* values(int64_t i) const { return values_[i]; }

  void load_from(const Stretch& from, int64_t start, int64_t head) {
    count = std::min<int64_t>(kBlock, from.count - start);
    position = from.position + start;
    const float* lines[kLanes];
    for (int64_t i = 0; i < count; i += kLanes) {
      const int64_t here = std::min<int64_t>(kLanes, count - i);
      for (int64_t j = 0; j < kLanes; j++)  // a last vector repeats its last key
        lines[j] = find(*from.keys, at(from, start + i + std::min(j, here - 1)), head,
                        &copies_[j * dim_]);
      for (int64_t d = 0; d < dim_; d += kLanes) {
        vec rows[kLanes];
        for (int j = 0; j < kLanes; j++) rows[j] = load(lines[j] + d);
        transpose(rows);
        for (int j = 0; j < kLanes; j++) store(&keys_[(d + j) * kBlock + i], rows[j]);
      }
    }
    for (int64_t i = 0; i < count; i++)
      values_[i] = find(*from.values, at(from, start + i), head, &copies_[i * dim_]);
  }

 private:
  static int64_t at(const Stretch& s, int64_t i) {
    return s.slots ? s.slots[s.first + i] : s.first + i;
  }

  const float* find(const Lines& lines, int64_t n, int64_t head, float* copy) const {
    const int64_t start = n * lines.stride + head * dim_;
    if (lines.floats) return lines.floats + start;
    const float scale = lines.scales[start / dim_];
    for (int64_t d = 0; d < dim_; d++) copy[d] = scale * lines.levels[start + d];
    return copy;
  }

  int64_t dim_;
  Buffer<float> keys_, copies_;
  const float* values_[kBlock];
};

// Queries that share a KV head, and what they have seen so far.
class Tile {
 public:
  Tile(const Heads& heads, int64_t head, int64_t queries)
      : heads_(heads), head_(head), block_(heads.dim), q_(queries * heads.dim),
        weights_(queries * kBlock), out_(queries * heads.dim), peaks_(queries, kNothing),
        masses_(queries * kLanes), positions_(queries) {}

  void set(int64_t query, const float* q, int64_t position) {
    std::memcpy(&q_[query * heads_.dim], q, heads_.dim * sizeof(float));
    positions_[query] = position;
  }

  // Let queries [first, last) see those keys of a stretch that their positions allow.
  void see(const Stretch& keys, int64_t first, int64_t last) {
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

  // The softmax's average of the values, for one query.
  void finish(int64_t query, int64_t head, float* out) {
    float mass = sum(load(&masses_[query * kLanes]));
    if (heads_.sinks) mass += std::exp(heads_.sinks[head] - peaks_[query]);
    for (int64_t d = 0; d < heads_.dim; d++) out[d] = out_[query * heads_.dim + d] / mass;
  }

 private:
  static constexpr int kTogether = 6;  // queries whose sums stay in registers

  template <typename F>
  static void in_sixes(int64_t first, int64_t last, const F& f) {
    for (; first + kTogether <= last; first += kTogether)
      f(first, std::integral_constant<int, kTogether>{});
    switch (last - first) {
      case 5: return f(first, std::integral_constant<int, 5>{});
      case 4: return f(first, std::integral_constant<int, 4>{});
      case 3: return f(first, std::integral_constant<int, 3>{});
      case 2: return f(first, std::integral_constant<int, 2>{});
      case 1: return f(first, std::integral_constant<int, 1>{});
    }
  }

  void score(int64_t first, int64_t last) {
    in_sixes(first, last, [&](int64_t query, auto together) {
      constexpr int kQueries = together;
      vec sums[kQueries][kBlockVecs] = {};
      const float* q = &q_[query * heads_.dim];
      for (int64_t d = 0; d < heads_.dim; d++) {
        const float* keys = block_.keys(d);
        vec k[kBlockVecs];
        for (int v = 0; v < kBlockVecs; v++) k[v] = load(keys + v * kLanes);
        for (int i = 0; i < kQueries; i++)
          for (int v = 0; v < kBlockVecs; v++) sums[i][v] += q[i * heads_.dim + d] * k[v];
      }
      for (int i = 0; i < kQueries; i++)
        for (int v = 0; v < kBlockVecs; v++)
          store(&weights_[(query + i) * kBlock + v * kLanes], sums[i][v]);
    });
  }

  void weigh(int64_t first, int64_t last, int64_t low, int64_t high) {
    const int64_t begin = block_.position, end = begin + block_.count - 1;
    const bool all_seen = block_.count == kBlock && end <= low &&
                          (!heads_.window || high - begin < heads_.window);
    const ivec lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int64_t query = first; query < last; query++) {
      float* row = &weights_[query * kBlock];
      vec scores[kBlockVecs], peak = all(kUnseen);
      for (int v = 0; v < kBlockVecs; v++) {
        vec s = load(row + v * kLanes) * heads_.scale;
        if (heads_.softcap)
          s = heads_.softcap * (1 - 2 / (exponential(s * (2 / heads_.softcap)) + 1));
        if (!all_seen) {
          // distance from the key to the query, in lanes
          const ivec back = (int)(positions_[query] - begin - v * kLanes) - lanes;
          ivec seen = (back >= 0) & (lanes < (int)(block_.count - v * kLanes));
          if (heads_.window) seen &= back < (int)heads_.window;
          s = seen ? s : all(kUnseen);
        }
        scores[v] = s;
        peak = larger(peak, s);
      }
      const float before = peaks_[query], now = std::max(before, largest(peak));
      if (now > before) {
        peaks_[query] = now;
        const float kept = before == kNothing ? 0.0f : std::exp(before - now);
        store(&masses_[query * kLanes], load(&masses_[query * kLanes]) * kept);
        float* out = &out_[query * heads_.dim];
        for (int64_t d = 0; d < heads_.dim; d += kLanes) store(out + d, load(out + d) * kept);
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

  void add_values(int64_t first, int64_t last) {
    int64_t d = 0;
    for (; d + 4 * kLanes <= heads_.dim; d += 4 * kLanes) add_values<4>(first, last, d);
    for (; d < heads_.dim; d += kLanes) add_values<1>(first, last, d);
  }

  template <int kVecs>
  void add_values(int64_t first, int64_t last, int64_t d) {
    in_sixes(first, last, [&](int64_t query, auto together) {
      constexpr int kQueries = together;
      vec sums[kQueries][kVecs];
      float* out = &out_[query * heads_.dim + d];
      for (int i = 0; i < kQueries; i++)
        for (int v = 0; v < kVecs; v++) sums[i][v] = load(out + i * heads_.dim + v * kLanes);
      const float* weights = &weights_[query * kBlock];
      for (int64_t key = 0; key < block_.count; key++) {
        const float* values = block_.values(key) + d;
        vec x[kVecs];
        for (int v = 0; v < kVecs; v++) x[v] = load(values + v * kLanes);
        for (int i = 0; i < kQueries; i++)
          for (int v = 0; v < kVecs; v++) sums[i][v] += weights[i * kBlock + key] * x[v];
      }
      for (int i = 0; i < kQueries; i++)
        for (int v = 0; v < kVecs; v++) store(out + i * heads_.dim + v * kLanes, sums[i][v]);
    });
  }

  const Heads& heads_;
  int64_t head_;
  Block block_;
  Buffer<float> q_, weights_;
  std::vector<float> out_, peaks_, masses_;
  std::vector<int64_t> positions_;
};

// Chunks: rows of new tokens, each over its prefix in the pool and, causally, over itself.
// `table` has by row: where its slots begin, prefix length, first token, tokens.
struct Chunks {
  const int32_t *slots, *table;
  int64_t rows;
  Lines pool_keys, pool_values, new_keys, new_values;
};

inline void extend_attention(const Heads& heads, const Chunks& work, const float* q,
                             int64_t q_stride, float* out) {
  constexpr int64_t kQueries = 96;
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
        tile.set((t - item.first) * group + g,
                 q + (begin + t) * q_stride + (head * group + g) * heads.dim, prefix + t);
    const int64_t all = (item.last - item.first) * group;
    tile.see({&work.pool_keys, &work.pool_values, work.slots, row[0], prefix, 0}, 0, all);
    tile.see({&work.new_keys, &work.new_values, nullptr, begin, row[3], prefix}, 0, all);
    for (int64_t t = item.first; t < item.last; t++)
      for (int64_t g = 0; g < group; g++) {
        const int64_t h = head * group + g;
        tile.finish((t - item.first) * group + g, h,
                    out + ((begin + t) * heads.query_heads + h) * heads.dim);
      }
  });
}

// Decode: the last `tokens` of `length` columns of each row's tail, over the row's spans, its own
// prefix and the tail. `table` has by row: where its slots begin, the position of the first of
// them, the position of its first tail column, 0; `spans` by span: first row, end row, where its
// slots begin, position, number of keys.
struct Decode {
  const int32_t *slots, *table, *spans;
  int64_t rows, span_count, tokens, width, length;
  Lines pool_keys, pool_values, tail_keys, tail_values;
};

inline void decode_attention(const Heads& heads, const Decode& work, const float* q,
                             int64_t q_stride, float* out) {
  constexpr int64_t kRows = 16;  // rows that read what they share together
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
      tile.set(query, q + (row * work.tokens + t) * q_stride + h * heads.dim, position);
    });
    for (const int32_t* span = work.spans; span < work.spans + 5 * work.span_count; span += 5) {
      const int64_t from = std::max<int64_t>(first, span[0]);
      const int64_t until = std::min<int64_t>(last, span[1]);
      if (from < until)
        tile.see({&work.pool_keys, &work.pool_values, work.slots, span[2], span[4], span[3]},
                 (from - first) * queries, (until - first) * queries);
    }
    for (int64_t row = first; row < last; row++) {
      const int32_t* at = work.table + 4 * row;
      const int64_t mine = (row - first) * queries;
      tile.see({&work.pool_keys, &work.pool_values, work.slots, at[0], at[2] - at[1], at[1]}, mine,
               mine + queries);
      tile.see({&work.tail_keys, &work.tail_values, nullptr, row * work.width, work.length, at[2]},
               mine, mine + queries);
    }
    each_query([&](int64_t query, int64_t row, int64_t t, int64_t h) {
      tile.finish(query, h, out + ((row * work.tokens + t) * heads.query_heads + h) * heads.dim);
    });
  });
}

}  // namespace sgl

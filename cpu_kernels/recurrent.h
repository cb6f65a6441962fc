// Layers whose heads keep a matrix of state from token to token, and the short convolution in front
// of them. The rules are the gated delta rule (arXiv 2412.06464; with a gate for each key channel
// it is Kimi Delta Attention, arXiv 2510.26692) and the state space of Mamba-2 (arXiv 2405.21060).
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "lines.h"
#include "parallel.h"
#include "simd.h"

namespace sgl {

// A recurrence over rows (sequences) of a batch. The tokens of all rows follow each other in q, k
// and v; row r has lengths[r] of them. States are (rows, value_heads, value_dim, key_dim). For each
// token, a head with state S, key k, query q and value v computes
//   S = S * decay
//   delta = beta * v              or, with `corrects`,  beta * (v - S k)
//   S = S + delta k^T
//   y = S q                       or, with `skip`,      S q + skip * v
struct Recurrence {
  Lines q, k, v;       // (tokens, heads, dim)
  const float* decay;  // (tokens, value_heads), or (tokens, value_heads, key_dim) if `by_channel`
  const float* beta;   // (tokens, value_heads)
  const float* skip;   // (value_heads,) or null
  std::vector<int64_t> lengths;
  int64_t key_heads, value_heads, key_dim, value_dim;  // key_dim: a multiple of 16
  bool by_channel, corrects;

  // Heads of values that share a head of keys follow each other.
  int64_t key_head(int64_t head) const { return head * key_heads / value_heads; }
};

// One token's inputs of one head.
struct RecurrentToken {
  const float *q, *k, *v, *decay;
  float beta, skip;
};

// Computes one token for kRows rows of a head's state, from `old_state` to `state` (the same memory
// is allowed). Each state row is one element of the value; `y` gets its output.
template <bool kByChannel, bool kCorrects, int kRows>
SGL_INLINE void advance_rows(const RecurrentToken& token, int64_t row, int64_t key_dim,
                             const float* old_state, float* state, float* y) {
  const auto decay_at = [&](int64_t d) {
    return kByChannel ? load(token.decay + d) : vec{} + *token.decay;
  };
  const float* v = token.v + row;
  float deltas[kRows];
  vec sums[kRows] = {};
  if constexpr (kCorrects)
    for (int64_t d = 0; d < key_dim; d += kLanes) {
      const vec k = load(token.k + d), decay = decay_at(d);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; i++) sums[i] += load(old_state + i * key_dim + d) * decay * k;
    }
  for (int i = 0; i < kRows; i++) {
    deltas[i] = token.beta * (v[i] - sum(sums[i]));
    sums[i] = vec{};
  }
  for (int64_t d = 0; d < key_dim; d += kLanes) {
    const vec k = load(token.k + d), q = load(token.q + d), decay = decay_at(d);
#pragma GCC unroll 4
    for (int i = 0; i < kRows; i++) {
      const vec s = load(old_state + i * key_dim + d) * decay + deltas[i] * k;
      store(state + i * key_dim + d, s);
      sums[i] += s * q;
    }
  }
  for (int i = 0; i < kRows; i++) y[i] = sum(sums[i]) + token.skip * v[i];
}

// Computes one token for rows [first, last) of a head's state; `y` begins with row `first`.
template <bool kByChannel, bool kCorrects>
void advance_block(const RecurrentToken& token, int64_t first, int64_t last, int64_t key_dim,
                   const float* old_state, float* state, float* y) {
  constexpr int kTogether = 4;
  int64_t row = first;
  for (; row + kTogether <= last; row += kTogether)
    advance_rows<kByChannel, kCorrects, kTogether>(token, row, key_dim, old_state + row * key_dim,
                                                   state + row * key_dim, y + row - first);
  for (; row < last; row++)
    advance_rows<kByChannel, kCorrects, 1>(token, row, key_dim, old_state + row * key_dim,
                                           state + row * key_dim, y + row - first);
}

// y is (tokens, value_heads, value_dim). A row of no tokens keeps its state. Tokens are computed
// one after the other, so a row cut anywhere gives the same bits.
inline void recur(const Recurrence& r, const float* old_states, float* states, float* y) {
  constexpr int64_t kStateRows = 32;  // 16 KB of state at key_dim 128: stays in L1
  const auto advance = r.by_channel
                           ? (r.corrects ? advance_block<true, true> : advance_block<true, false>)
                           : (r.corrects ? advance_block<false, true>
                                         : advance_block<false, false>);
  const int64_t rows = r.lengths.size(), heads = r.value_heads;
  const int64_t blocks = (r.value_dim + kStateRows - 1) / kStateRows;
  std::vector<int64_t> starts(rows, 0);
  for (int64_t row = 1; row < rows; row++) starts[row] = starts[row - 1] + r.lengths[row - 1];
  Threads::shared().each(rows * heads * blocks, [&](int64_t item) {
    const int64_t row = item / blocks / heads, head = item / blocks % heads;
    const int64_t first = item % blocks * kStateRows;
    const int64_t last = std::min(r.value_dim, first + kStateRows);
    const int64_t matrix = (row * heads + head) * r.value_dim * r.key_dim;
    const float* from = old_states + matrix;
    float* to = states + matrix;
    if (r.lengths[row] == 0)
      std::copy(from + first * r.key_dim, from + last * r.key_dim, to + first * r.key_dim);
    for (int64_t t = starts[row]; t < starts[row] + r.lengths[row]; t++, from = to) {
      const int64_t at = t * heads + head;
      const RecurrentToken token{r.q.at(t, r.key_head(head)),
                                 r.k.at(t, r.key_head(head)),
                                 r.v.at(t, head),
                                 r.decay + at * (r.by_channel ? r.key_dim : 1),
                                 r.beta[at],
                                 r.skip ? r.skip[head] : 0.0f};
      advance(token, first, last, r.key_dim, from, to, y + at * r.value_dim + first);
    }
  });
}

// Computes the decay of each key channel from a (tokens, heads, dim), A_log (heads,) and
// bias (heads, dim): exp(-exp(A_log) * softplus(a + bias)), or, if `bound` is not 0,
// exp(bound * sigmoid(exp(A_log) * (a + bias))). `dim` is a multiple of 16.
inline void channel_decay(const float* a, const float* A_log, const float* bias, float bound,
                          int64_t tokens, int64_t heads, int64_t dim, float* decay) {
  constexpr int64_t kGrain = 1 << 11;  // elements that are worth a thread
  each_range(tokens * heads, std::max<int64_t>(1, kGrain / dim), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
      const float rate = std::exp(A_log[i % heads]);
      for (int64_t d = 0; d < dim; d += kLanes) {
        const vec x = load(a + i * dim + d) + load(bias + i % heads * dim + d);
        const vec softplus = larger(x, vec{}) + log_of_one_plus(exponential(larger(x, -x) * -1));
        const vec power = bound ? bound / (1 + exponential(x * -rate)) : softplus * -rate;
        store(decay + i * dim + d, exponential(power));
      }
    }
  });
}

// A causal convolution of each channel by itself:
// y[row, t, c] = bias[c] + sum over w < width of weights[w, c] * x[row, t + w, c].
// x is (rows, length + width - 1, channels), y (rows, length, channels); `bias` may be null.
inline void short_convolution(const float* x, const float* weights, const float* bias, int64_t rows,
                              int64_t length, int64_t width, int64_t channels, float* y) {
  constexpr int64_t kGrain = 1 << 13;  // products that are worth a thread
  const int64_t tokens = std::max<int64_t>(1, kGrain / (channels * width));
  each_range(rows * length, tokens, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
      const float* from = x + (i / length * (length + width - 1) + i % length) * channels;
      float* to = y + i * channels;
      int64_t c = 0;
      for (; c + kLanes <= channels; c += kLanes) {
        vec total = bias ? load(bias + c) : vec{};
        for (int64_t w = 0; w < width; w++)
          total += load(weights + w * channels + c) * load(from + w * channels + c);
        store(to + c, total);
      }
      for (; c < channels; c++) {
        to[c] = bias ? bias[c] : 0.0f;
        for (int64_t w = 0; w < width; w++)
          to[c] += weights[w * channels + c] * from[w * channels + c];
      }
    }
  });
}

}  // namespace sgl

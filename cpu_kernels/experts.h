// Products with the packed weights of experts: each row of x is multiplied by the expert chosen for
// it. Rows of one expert are multiplied together, so that its weights are read once.
#pragma once

#include <cstring>
#include <vector>

#include "rows.h"

namespace sgl {

// Weights of `count` experts, each packed like `first` and following the one before.
struct PackedExperts {
  PackedWeights first;
  int64_t count;

  PackedWeights at(int64_t expert) const {
    const int64_t scales = first.blocks() * first.groups() * kOutputs;
    PackedWeights w = first;
    w.q += expert * first.bytes();
    w.scales += expert * scales;
    w.biases += expert * scales;
    return w;
  }
};

// Rows in the order of their experts. Those of expert e are order[i] for i in [starts[e],
// starts[e + 1]).
struct RowsByExpert {
  RowsByExpert(const int32_t* experts, int64_t rows, int64_t count)
      : starts(count + 1, 0), order(rows) {
    for (int64_t i = 0; i < rows; i++) starts[experts[i] + 1]++;
    for (int64_t e = 0; e < count; e++) starts[e + 1] += starts[e];
    std::vector<int64_t> next(starts.begin(), starts.end() - 1);
    for (int64_t i = 0; i < rows; i++) order[next[experts[i]]++] = i;
    for (int64_t e = 0; e < count; e++)
      if (starts[e] < starts[e + 1]) used.push_back(e);
  }

  std::vector<int64_t> starts, order, used;  // `used`: experts that have rows
};

// Multiplies row i of y (rows, n) from row i / repeats of x by expert experts[i]. A row's sums are
// added in the same order whatever the other rows are.
inline void multiply_experts(const PackedExperts& all, const float* x, int64_t repeats,
                             const int32_t* experts, int64_t rows, float* y) {
  const int64_t k = all.first.k, n = all.first.n, blocks = all.first.blocks();
  const RowsByExpert sorted(experts, rows, all.count);
  Buffer<float> inputs(rows * k), totals(rows * all.first.groups()), results(rows * n);
  for (int64_t i = 0; i < rows; i++)
    std::memcpy(&inputs[i * k], x + sorted.order[i] / repeats * k, k * sizeof(float));
  sum_groups(all.first, inputs.data(), rows, totals.data());
  const auto multiply = all.first.bits == 4 ? multiply_block<4> : multiply_block<8>;
  each_range(sorted.used.size() * blocks, 2, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
      const int64_t expert = sorted.used[i / blocks], start = sorted.starts[expert];
      multiply(all.at(expert), i % blocks, &inputs[start * k], &totals[start * all.first.groups()],
               sorted.starts[expert + 1] - start, &results[start * n]);
    }
  });
  for (int64_t i = 0; i < rows; i++)
    std::memcpy(y + sorted.order[i] * n, &results[i * n], n * sizeof(float));
}

}  // namespace sgl

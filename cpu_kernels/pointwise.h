// What a layer does token by token: normalise, turn by position, gate.
#pragma once

#include <cmath>
#include <cstring>
#include <map>
#include <tuple>
#include <vector>

#include "parallel.h"
#include "simd.h"

namespace sgl {

constexpr int64_t kWorthThreads = 1 << 14;  // elements

// y = x / sqrt(mean(x**2) + eps) * weight, row by row; `weight` (width,) or null for ones.
inline void rms_norm(const float* x, const float* weight, float eps, int64_t rows, int64_t width,
                     float* y) {
  each_range(rows, std::max<int64_t>(1, kWorthThreads / width), [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++) {
      const float* from = x + row * width;
      float* to = y + row * width;
      vec squares{};
      int64_t i = 0;
      for (; i + kLanes <= width; i += kLanes) squares += load(from + i) * load(from + i);
      float total = sum(squares);
      for (; i < width; i++) total += from[i] * from[i];
      const float factor = 1 / std::sqrt(total / width + eps);
      for (i = 0; i < width; i++) to[i] = from[i] * factor * (weight ? weight[i] : 1.0f);
    }
  });
}

// silu(gate) * x
inline void swiglu(const float* gate, const float* x, int64_t size, float* y) {
  each_range(size, kWorthThreads, [&](int64_t first, int64_t last) {
    int64_t i = first;
    for (; i + kLanes <= last; i += kLanes) {
      const vec g = load(gate + i);
      store(y + i, g / (1 + exponential(-g)) * load(x + i));
    }
    for (; i < last; i++) y[i] = gate[i] / (1 + std::exp(-gate[i])) * x[i];
  });
}

struct Rope {
  int64_t dims;  // of a head, that are turned; the rest stay
  bool traditional;  // pairs are neighbours rather than halves
  float base, scale;
  std::vector<float> frequencies;  // of each pair, as wavelengths over 2 pi; empty: from `base`
};

// Cosines and sines of every position up to the largest that was asked for.
class Turns {
 public:
  explicit Turns(const Rope& rope) : scale_(rope.scale), inverse_(rope.dims / 2) {
    const float step = std::log(rope.base) / inverse_.size();
    for (size_t i = 0; i < inverse_.size(); i++)
      inverse_[i] = rope.frequencies.empty() ? std::exp(-float(i) * step) : 1 / rope.frequencies[i];
  }

  void reach(int64_t position) {
    const int64_t pairs = inverse_.size();
    for (int64_t p = cosines_.size() / std::max<int64_t>(1, pairs); p <= position; p++)
      for (const float inverse : inverse_) {
        const float angle = p * scale_ * inverse;
        cosines_.push_back(std::cos(angle));
        sines_.push_back(std::sin(angle));
      }
  }

  const float* cosines(int64_t position) const { return &cosines_[position * inverse_.size()]; }
  const float* sines(int64_t position) const { return &sines_[position * inverse_.size()]; }

 private:
  float scale_;
  std::vector<float> inverse_, cosines_, sines_;
};

// The layers of a model turn alike: the table is kept from one to the next.
inline Turns& turns_of(const Rope& rope) {
  using Key = std::tuple<int64_t, float, float, std::vector<float>>;
  thread_local std::map<Key, Turns> tables;
  Key key{rope.dims, rope.base, rope.scale, rope.frequencies};
  return tables.try_emplace(std::move(key), rope).first->second;
}

// x (batch, heads, length, dim) with strides; the token at `l` of batch b is at offset[b] + l.
inline void rope(const Rope& how, const float* x, const int64_t* strides, const int64_t* shape,
                 const int32_t* offsets, bool one_offset, float* y) {
  const int64_t batch = shape[0], heads = shape[1], length = shape[2], dim = shape[3];
  const int64_t pairs = how.dims / 2;
  Turns& turns = turns_of(how);
  for (int64_t b = 0; b < batch; b++) turns.reach(offsets[one_offset ? 0 : b] + length - 1);
  const int64_t grain = std::max<int64_t>(1, kWorthThreads / (heads * dim));
  each_range(batch * length, grain, [&](int64_t first, int64_t last) {
    for (int64_t token = first; token < last; token++) {
      const int64_t b = token / length, l = token % length;
      const int64_t position = offsets[one_offset ? 0 : b] + l;
      const float *c = turns.cosines(position), *s = turns.sines(position);
      for (int64_t h = 0; h < heads; h++) {
        const float* from = x + b * strides[0] + h * strides[1] + l * strides[2];
        float* to = y + ((b * heads + h) * length + l) * dim;
        const int64_t step = how.traditional ? 2 : 1, apart = how.traditional ? 1 : pairs;
        for (int64_t i = 0; i < pairs; i++) {
          const float one = from[i * step], other = from[i * step + apart];
          to[i * step] = one * c[i] - other * s[i];
          to[i * step + apart] = one * s[i] + other * c[i];
        }
        std::memcpy(to + how.dims, from + how.dims, (dim - how.dims) * sizeof(float));
      }
    }
  });
}

}  // namespace sgl

// Operations on each token by itself: RMS norm, rotary positions, SiLU and SwiGLU.
#pragma once

#include <cmath>
#include <cstring>
#include <map>
#include <tuple>
#include <vector>

#include "parallel.h"
#include "simd.h"

namespace sgl {

constexpr int64_t kWorthThreads = 1 << 14;  // elements that are worth a thread

// y = x / sqrt(mean(x**2) + eps) * weight for each row of x (rows, width). `weight` is (width,), or
// null for ones.
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

// y = silu(gate) * x, or silu(gate) if `x` is null.
inline void swiglu(const float* gate, const float* x, int64_t size, float* y) {
  each_range(size, kWorthThreads, [&](int64_t first, int64_t last) {
    int64_t i = first;
    for (; i + kLanes <= last; i += kLanes) {
      const vec g = load(gate + i), silu = g / (1 + exponential(-g));
      store(y + i, x ? silu * load(x + i) : silu);
    }
    for (; i < last; i++) y[i] = gate[i] / (1 + std::exp(-gate[i])) * (x ? x[i] : 1.0f);
  });
}

// Rotary positions of one kind: pair i of a head's elements is rotated by an angle of
// position * scale * base**(-2 i / dims), or position * scale / frequencies[i].
struct Rope {
  int64_t dims;      // first elements of a head that are rotated; the others stay
  bool traditional;  // a pair is 2 i and 2 i + 1, else i and i + dims / 2
  float base, scale;
  std::vector<float>
      frequencies;  // (dims / 2,) wavelengths, which MLX calls so; if empty, `base` is used
};

// Tables (position, dims / 2) of cosines and sines, which grow with the largest position.
class RopeTable {
 public:
  explicit RopeTable(const Rope& rope) : scale_(rope.scale), inverse_(rope.dims / 2) {
    const float step = std::log(rope.base) / inverse_.size();
    for (size_t i = 0; i < inverse_.size(); i++)
      inverse_[i] = rope.frequencies.empty() ? std::exp(-float(i) * step) : 1 / rope.frequencies[i];
  }

  // Extends the tables to positions up to `position`.
  void extend_to(int64_t position) {
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

// Returns this thread's table for `rope`, which is kept for all layers and steps.
inline RopeTable& table_of(const Rope& rope) {
  using Key = std::tuple<int64_t, float, float, std::vector<float>>;
  thread_local std::map<Key, RopeTable> tables;
  Key key{rope.dims, rope.base, rope.scale, rope.frequencies};
  return tables.try_emplace(std::move(key), rope).first->second;
}

// Rotates x, which has shape (batch, heads, length, dim) and these strides; the last is 1. Token l
// of batch b has position offsets[b] + l, or offsets[0] + l with `one_offset`. y has no gaps.
inline void rope(const Rope& how, const float* x, const int64_t* strides, const int64_t* shape,
                 const int32_t* offsets, bool one_offset, float* y) {
  const int64_t batch = shape[0], heads = shape[1], length = shape[2], dim = shape[3];
  const int64_t pairs = how.dims / 2;
  RopeTable& table = table_of(how);
  for (int64_t b = 0; b < batch; b++) table.extend_to(offsets[one_offset ? 0 : b] + length - 1);
  const int64_t grain = std::max<int64_t>(1, kWorthThreads / (heads * dim));
  each_range(batch * length, grain, [&](int64_t first, int64_t last) {
    for (int64_t token = first; token < last; token++) {
      const int64_t b = token / length, l = token % length;
      const int64_t position = offsets[one_offset ? 0 : b] + l;
      const float *c = table.cosines(position), *s = table.sines(position);
      for (int64_t h = 0; h < heads; h++) {
        const float* from = x + b * strides[0] + h * strides[1] + l * strides[2];
        float* to = y + ((b * heads + h) * length + l) * dim;
        const int64_t step = how.traditional ? 2 : 1, distance = how.traditional ? 1 : pairs;
        for (int64_t i = 0; i < pairs; i++) {
          const float one = from[i * step], other = from[i * step + distance];
          to[i * step] = one * c[i] - other * s[i];
          to[i * step + distance] = one * s[i] + other * c[i];
        }
        std::memcpy(to + how.dims, from + how.dims, (dim - how.dims) * sizeof(float));
      }
    }
  });
}

}  // namespace sgl

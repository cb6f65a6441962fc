// Evaluated arrays of MLX as the kernels read them.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "lines.h"
#include "mlx/mlx.h"

namespace sgl {

// An evaluated array's memory, shape and strides (in elements).
struct View {
  explicit View(const mlx::core::array& a)
      : data(a.data<char>()), shape(a.shape().begin(), a.shape().end()),
        strides(a.strides().begin(), a.strides().end()), dense(a.flags().row_contiguous) {}

  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(data);
  }

  const char* data;
  std::vector<int64_t> shape, strides;
  bool dense;  // in row-major order without gaps
};

// Floats of an array in row-major order without gaps; they are copied only if the array is not.
class Dense {
 public:
  explicit Dense(const View& v) : data_(v.as<float>()) {
    if (v.dense) return;
    int64_t size = 1;
    for (const int64_t length : v.shape) size *= length;
    copy_.reserve(size);
    append(v, 0, data_);
    data_ = copy_.data();
  }

  operator const float*() const { return data_; }

 private:
  void append(const View& v, size_t axis, const float* from) {
    if (axis == v.shape.size()) {
      copy_.push_back(*from);
      return;
    }
    for (int64_t i = 0; i < v.shape[axis]; i++) append(v, axis + 1, from + i * v.strides[axis]);
  }

  const float* data_;
  std::vector<float> copy_;
};

// Floats of an array (…, heads, dim), of which all axes before the heads become one. They are
// copied only if the strides do not allow that.
class TokenLines {
 public:
  explicit TokenLines(const View& v) {
    const size_t heads = v.shape.size() - 2;
    int64_t stride = 0, length = 1;
    bool even = v.strides.back() == 1 || v.shape.back() == 1;
    for (size_t axis = heads; axis-- > 0;) {
      if (v.shape[axis] == 1) continue;
      if (length == 1) stride = v.strides[axis];
      even &= v.strides[axis] == stride * length;
      length *= v.shape[axis];
    }
    lines_.heads = v.shape[heads];
    if (even) {
      lines_.floats = v.as<float>();
      lines_.stride = stride;
      lines_.head_stride = v.strides[heads];
    } else {
      copy_.emplace(v);
      lines_.floats = *copy_;
      lines_.stride = v.shape[heads] * v.shape.back();
      lines_.head_stride = v.shape.back();
    }
  }

  operator const Lines&() const { return lines_; }

 private:
  std::optional<Dense> copy_;
  Lines lines_;
};

}  // namespace sgl

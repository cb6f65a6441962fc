// Uninitialised memory that begins at a cache line, so that aligned vectors never span two lines.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace sgl {

template <typename T>
class Buffer {
 public:
  explicit Buffer(size_t size = 0) { reserve(size); }

  // Makes room for `size` elements; if the buffer has to grow, its contents are lost. A buffer that
  // is kept between calls saves asking the system for memory each time.
  void reserve(size_t size) {
    if (size <= size_) return;
    data_.reset(static_cast<T*>(::operator new(size * sizeof(T), kLine)));
    size_ = size;
  }

  T& operator[](size_t i) { return data_.get()[i]; }
  const T& operator[](size_t i) const { return data_.get()[i]; }
  T* data() { return data_.get(); }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Delete {
    void operator()(T* p) const { ::operator delete(p, kLine); }
  };
  std::unique_ptr<T, Delete> data_;
  size_t size_ = 0;
};

}  // namespace sgl

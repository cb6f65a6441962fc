// simdgroup_matrix: 8 x 8 elements, two in every lane.
#pragma once
#include "metal_simd.hpp"

namespace metal {

template <class T, int Rows, int Cols> struct simdgroup_matrix;

namespace detail {

// Apple's map: lane l holds row(l), columns column(l) and column(l) + 1.
constexpr int row_of(int lane) { return (lane / 4 & 4) + lane / 2 % 4; }
constexpr int column_of(int lane) { return (lane / 4 & 2) * 2 + lane % 2 * 2; }

template <class T> struct Tile {
  T at[8][8];
};

template <class M> inline __attribute__((disable_sanitizer_instrumentation)) void gather(
    Tile<float>& tile, void* const* payloads, const M* (*part)(void*)) {
  for (int lane = 0; lane < 32; ++lane) {
    if (!payloads[lane])
      emu_trap("inactive lane", "a matrix operation in a simdgroup of less than 32 lanes");
    const M* matrix = part(payloads[lane]);
    tile.at[row_of(lane)][column_of(lane)] = float(matrix->elements.lanes[0]);
    tile.at[row_of(lane)][column_of(lane) + 1] = float(matrix->elements.lanes[1]);
  }
}

template <class D, class A, class B, class C> struct Multiply {
  D* d;
  const A* a;
  const B* b;
  const C* c;

  static const A* get_a(void* p) { return static_cast<Multiply*>(p)->a; }
  static const B* get_b(void* p) { return static_cast<Multiply*>(p)->b; }
  static const C* get_c(void* p) { return static_cast<Multiply*>(p)->c; }

  // Sums in float, rounded once to the type of D.
  static EMU_TOGETHER void combine(void* const* payloads) {
    Tile<float> a, b, c;
    gather<A>(a, payloads, get_a);
    gather<B>(b, payloads, get_b);
    gather<C>(c, payloads, get_c);
    for (int i = 0; i < 8; ++i)
      for (int k = 0; k < 8; ++k)
        for (int j = 0; j < 8; ++j) c.at[i][j] += a.at[i][k] * b.at[k][j];
    for (int lane = 0; lane < 32; ++lane) {
      auto& elements = static_cast<Multiply*>(payloads[lane])->d->elements;
      for (int e = 0; e < 2; ++e)
        elements.lanes[e] = typename D::element(c.at[row_of(lane)][column_of(lane) + e]);
    }
    ++emu_counters[emu::kMma];
  }
};

template <class T> struct Transfer {
  T* elements;
  T* memory[2];

  template <int write> static EMU_TOGETHER void combine(void* const* payloads) {
    for (int lane = 0; lane < 32; ++lane) {
      if (!payloads[lane])
        emu_trap("inactive lane", "a matrix operation in a simdgroup of less than 32 lanes");
      auto& part = *static_cast<Transfer*>(payloads[lane]);
      for (int e = 0; e < 2; ++e) {
        emu_touch(lane, part.memory[e], sizeof(T), write);
        if (write) *part.memory[e] = part.elements[e];
        else part.elements[e] = *part.memory[e];
      }
    }
  }
};

template <int write, class T>
inline void transfer(const char* name, vec<T, 2>& elements, T* start, ulong stride, ulong2 origin,
                     bool transposed, int line) {
  static emu::SimdOp op = {nullptr, Transfer<T>::template combine<write>};
  op.name = name;
  ulong row = row_of(emu_self->lane), column = column_of(emu_self->lane);
  T* at = start + origin.y * stride + origin.x;
  Transfer<T> each = {elements.lanes, {}};
  for (ulong e = 0; e < 2; ++e)
    each.memory[e] = transposed ? at + (column + e) * stride + row : at + row * stride + column + e;
  emu_simd(&op, line, &each);
}

}  // namespace detail

template <class T, int Rows, int Cols>
struct simdgroup_matrix {
  static_assert(Rows == 8 && Cols == 8, "Apple's simdgroup matrices are 8 x 8");
  typedef T element;
  vec<T, 2> elements;

  simdgroup_matrix() : elements(T(__builtin_nanf(""))) {}
  explicit simdgroup_matrix(T diagonal) : elements(T(0)) {
    int row = detail::row_of(emu_self->lane), column = detail::column_of(emu_self->lane);
    if (row - column == 0 || row - column == 1) elements.lanes[row - column] = diagonal;
  }
  vec<T, 2>& thread_elements() { return elements; }
  const vec<T, 2>& thread_elements() const { return elements; }
};

typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <class T, int R, int C>
simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, R, C> made;
  made.elements = vec<T, 2>(value);
  return made;
}

template <class T>
void simdgroup_load(simdgroup_matrix<T, 8, 8>& d, const T* source, ulong elements_per_row = 8,
                    ulong2 origin = ulong2(0), bool transpose = false, EMU_LINE) {
  detail::transfer<0>("simdgroup_load", d.elements, const_cast<T*>(source), elements_per_row,
                      origin, transpose, line);
}

template <class T>
void simdgroup_store(simdgroup_matrix<T, 8, 8> a, T* target, ulong elements_per_row = 8,
                     ulong2 origin = ulong2(0), bool transpose = false, EMU_LINE) {
  detail::transfer<1>("simdgroup_store", a.elements, target, elements_per_row, origin, transpose,
                      line);
}

template <class TD, class TA, class TB, class TC>
void simdgroup_multiply_accumulate(simdgroup_matrix<TD, 8, 8>& d, const simdgroup_matrix<TA, 8, 8>& a,
                                   const simdgroup_matrix<TB, 8, 8>& b,
                                   const simdgroup_matrix<TC, 8, 8>& c, EMU_LINE) {
  using Op = detail::Multiply<simdgroup_matrix<TD, 8, 8>, simdgroup_matrix<TA, 8, 8>,
                              simdgroup_matrix<TB, 8, 8>, simdgroup_matrix<TC, 8, 8>>;
  static const emu::SimdOp op = {"simdgroup_multiply_accumulate", Op::combine};
  Op each = {&d, &a, &b, &c};
  emu_simd(&op, line, &each);
}

template <class TD, class TA, class TB>
void simdgroup_multiply(simdgroup_matrix<TD, 8, 8>& d, const simdgroup_matrix<TA, 8, 8>& a,
                        const simdgroup_matrix<TB, 8, 8>& b, EMU_LINE) {
  simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<TD, 8, 8>(TD(0)), line);
}

}  // namespace metal

// Metal's scalar and vector types for a CPU. Included before the kernel's own text.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <type_traits>

#include "runtime.hpp"

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef _Float16 half;

// Arithmetic in float, rounded to nearest even after every operation. As in Metal, a float becomes
// a bfloat only where the text says so.
struct bfloat {
  uint16_t bits;

  bfloat() = default;
  template <class T, class = std::enable_if_t<std::is_arithmetic_v<T> || std::is_same_v<T, half>>>
  explicit constexpr bfloat(T value) : bits(round(float(value))) {}
  constexpr operator float() const { return __builtin_bit_cast(float, uint32_t(bits) << 16); }

  static constexpr bfloat of_bits(uint16_t bits) {
    bfloat made(0.0f);
    made.bits = bits;
    return made;
  }

 private:
  static constexpr uint16_t round(float value) {
    uint32_t wide = __builtin_bit_cast(uint32_t, value);
    if (value != value) return uint16_t(wide >> 16 | 0x40);
    return uint16_t((wide + 0x7FFF + (wide >> 16 & 1)) >> 16);
  }
};

#define EMU_BFLOAT(op)                                                                    \
  inline constexpr bfloat operator op(bfloat a, bfloat b) {                               \
    return bfloat(float(a) op float(b));                                                  \
  }                                                                                       \
  inline constexpr bfloat& operator op##=(bfloat& a, bfloat b) { return a = a op b; }
EMU_BFLOAT(+) EMU_BFLOAT(-) EMU_BFLOAT(*) EMU_BFLOAT(/)
#undef EMU_BFLOAT
inline constexpr bfloat operator-(bfloat a) { return bfloat::of_bits(a.bits ^ 0x8000); }

typedef half float16_t;
typedef bfloat bfloat16_t;

namespace metal {

using ::bfloat;
using ::half;
using std::bool_constant;
using std::conditional_t;
using std::enable_if_t;
using std::false_type;
using std::integral_constant;
using std::is_floating_point;
using std::is_integral;
using std::is_same;
using std::is_same_v;
using std::is_signed_v;
using std::make_unsigned_t;
using std::remove_cv_t;
using std::remove_reference_t;
using std::true_type;

template <class T>
using remove_addrspace_t = std::remove_cv_t<T>;

namespace detail {
template <class T, int N> struct Storage;
template <class T> struct alignas(2 * sizeof(T)) Storage<T, 2> {
  union {
    T lanes[2];
    struct { T x, y; };
    struct { T r, g; };
  };
};
template <class T> struct alignas(4 * sizeof(T)) Storage<T, 3> {
  union {
    T lanes[3];
    struct { T x, y, z; };
    struct { T r, g, b; };
  };
};
template <class T> struct alignas(4 * sizeof(T)) Storage<T, 4> {
  union {
    T lanes[4];
    struct { T x, y, z, w; };
    struct { T r, g, b, a; };
  };
};
template <class T> struct Packed3 { T x, y, z; };
}  // namespace detail

template <class T, int N>
struct vec : detail::Storage<T, N> {
  using detail::Storage<T, N>::lanes;

  vec() = default;
  constexpr vec(T value) {
    for (int i = 0; i < N; ++i) lanes[i] = value;
  }
  template <class U, class = std::enable_if_t<!std::is_same_v<U, T> && std::is_convertible_v<U, float>>>
  explicit(!std::is_convertible_v<U, T>) constexpr vec(U value) : vec(T(value)) {}
  template <class... Parts, class = std::enable_if_t<(sizeof...(Parts) > 1)>>
  constexpr vec(const Parts&... parts) {
    int at = 0;
    (append(at, parts), ...);
  }
  template <class U, class = std::enable_if_t<!std::is_same_v<U, T>>>
  explicit constexpr vec(const vec<U, N>& other) {
    for (int i = 0; i < N; ++i) lanes[i] = T(other.lanes[i]);
  }
  constexpr T& operator[](int i) { return lanes[i]; }
  constexpr const T& operator[](int i) const { return lanes[i]; }

 private:
  template <class U> constexpr void append(int& at, const U& value) { lanes[at++] = T(value); }
  template <class U, int M> constexpr void append(int& at, const vec<U, M>& other) {
    for (int i = 0; i < M; ++i) lanes[at++] = T(other.lanes[i]);
  }
};

#define EMU_VECTOR(op)                                                                      \
  template <class T, int N> constexpr vec<T, N> operator op(vec<T, N> a, vec<T, N> b) {     \
    for (int i = 0; i < N; ++i) a.lanes[i] = T(a.lanes[i] op b.lanes[i]);                   \
    return a;                                                                               \
  }                                                                                         \
  template <class T, int N>                                                                 \
  constexpr vec<T, N> operator op(vec<T, N> a, std::type_identity_t<T> b) {                 \
    return a op vec<T, N>(b);                                                               \
  }                                                                                         \
  template <class T, int N>                                                                 \
  constexpr vec<T, N> operator op(std::type_identity_t<T> a, vec<T, N> b) {                 \
    return vec<T, N>(a) op b;                                                               \
  }                                                                                         \
  template <class T, int N, class U>                                                        \
  constexpr vec<T, N>& operator op##=(vec<T, N>& a, const U& b) { return a = a op b; }
EMU_VECTOR(+) EMU_VECTOR(-) EMU_VECTOR(*) EMU_VECTOR(/)
EMU_VECTOR(%) EMU_VECTOR(&) EMU_VECTOR(|) EMU_VECTOR(^) EMU_VECTOR(<<) EMU_VECTOR(>>)
#undef EMU_VECTOR
#define EMU_COMPARE(op)                                                                     \
  template <class T, int N> constexpr vec<bool, N> operator op(vec<T, N> a, vec<T, N> b) {  \
    vec<bool, N> c;                                                                         \
    for (int i = 0; i < N; ++i) c.lanes[i] = a.lanes[i] op b.lanes[i];                      \
    return c;                                                                               \
  }
EMU_COMPARE(==) EMU_COMPARE(!=) EMU_COMPARE(<) EMU_COMPARE(<=) EMU_COMPARE(>) EMU_COMPARE(>=)
#undef EMU_COMPARE
template <class T, int N> constexpr vec<T, N> operator-(vec<T, N> a) {
  for (T& lane : a.lanes) lane = -lane;
  return a;
}
template <int N> constexpr bool any(vec<bool, N> a) {
  for (bool lane : a.lanes) if (lane) return true;
  return false;
}
template <int N> constexpr bool all(vec<bool, N> a) {
  for (bool lane : a.lanes) if (!lane) return false;
  return true;
}

#define EMU_TYPES(T)            \
  typedef vec<T, 2> T##2;       \
  typedef vec<T, 3> T##3;       \
  typedef vec<T, 4> T##4;
EMU_TYPES(bool) EMU_TYPES(char) EMU_TYPES(uchar) EMU_TYPES(short) EMU_TYPES(ushort)
EMU_TYPES(int) EMU_TYPES(uint) EMU_TYPES(long) EMU_TYPES(ulong)
EMU_TYPES(half) EMU_TYPES(bfloat) EMU_TYPES(float)
#undef EMU_TYPES
typedef detail::Packed3<float> packed_float3;
typedef detail::Packed3<half> packed_half3;

template <class T> struct numeric_limits;
#define EMU_FLOAT_LIMITS(T, MAX, TINY, EPSILON)                                               \
  template <> struct numeric_limits<T> {                                                      \
    static constexpr T max() { return T(MAX); }                                               \
    static constexpr T lowest() { return T(-MAX); }                                           \
    static constexpr T min() { return T(TINY); }                                              \
    static constexpr T epsilon() { return T(EPSILON); }                                       \
    static constexpr T infinity() { return T(__builtin_inff()); }                             \
    static constexpr T quiet_NaN() { return T(__builtin_nanf("")); }                          \
  };
EMU_FLOAT_LIMITS(float, __FLT_MAX__, __FLT_MIN__, __FLT_EPSILON__)
EMU_FLOAT_LIMITS(half, 65504.0f, 6.103515625e-05f, 0.0009765625f)
EMU_FLOAT_LIMITS(bfloat, 3.38953139e38f, __FLT_MIN__, 0.0078125f)
#undef EMU_FLOAT_LIMITS
#define EMU_INT_LIMITS(T)                                                                     \
  template <> struct numeric_limits<T> {                                                      \
    static constexpr T max() { return T(T(-1) > T(0) ? T(-1) : T(~(1ull << (8 * sizeof(T) - 1)))); } \
    static constexpr T min() { return T(T(-1) > T(0) ? T(0) : T(1ull << (8 * sizeof(T) - 1))); }     \
    static constexpr T lowest() { return min(); }                                             \
  };
EMU_INT_LIMITS(int8_t) EMU_INT_LIMITS(uint8_t) EMU_INT_LIMITS(int16_t) EMU_INT_LIMITS(uint16_t)
EMU_INT_LIMITS(int32_t) EMU_INT_LIMITS(uint32_t) EMU_INT_LIMITS(int64_t) EMU_INT_LIMITS(uint64_t)
#undef EMU_INT_LIMITS

}  // namespace metal

using namespace metal;

template <class To, class From>
constexpr To as_type(From value) {
  static_assert(sizeof(To) == sizeof(From), "as_type between types of different sizes");
  return __builtin_bit_cast(To, value);
}

// MLX puts this before every custom kernel.
template <class T>
struct Limits {
  static constexpr bool kFloat = std::is_floating_point_v<T> || std::is_same_v<T, half> ||
                                 std::is_same_v<T, bfloat>;
  static constexpr T finite_max = metal::numeric_limits<T>::max();
  static constexpr T finite_min = metal::numeric_limits<T>::lowest();
  static constexpr T max = [] {
    if constexpr (kFloat) return metal::numeric_limits<T>::infinity();
    else return finite_max;
  }();
  static constexpr T min = [] {
    if constexpr (kFloat) return T(-metal::numeric_limits<T>::infinity());
    else return finite_min;
  }();
};

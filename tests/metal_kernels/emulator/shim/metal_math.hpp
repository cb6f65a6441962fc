// Metal's scalar functions. One overload a type and no others: as with Apple's compiler, max(half,
// float) is ambiguous and max(int, uint) too.
#pragma once
#include "metal_types.hpp"

#define METAL_FUNC inline __attribute__((__always_inline__))
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define HUGE_VALF __builtin_inff()
#define MAXFLOAT __FLT_MAX__
#define FLT_MAX __FLT_MAX__
#define FLT_MIN __FLT_MIN__
#define HALF_MAX half(65504.0f)
#define M_E_F 2.71828183f
#define M_LOG2E_F 1.44269504f
#define M_LOG10E_F 0.43429448f
#define M_LN2_F 0.69314718f
#define M_LN10_F 2.30258509f
#define M_PI_F 3.14159265f
#define M_SQRT2_F 1.41421356f

namespace metal {

#define EMU_EACH_FLOAT(make, ...) make(float, ##__VA_ARGS__) make(half, ##__VA_ARGS__) \
  make(bfloat, ##__VA_ARGS__)
#define EMU_EACH_INT(make) make(char) make(int8_t) make(uint8_t) make(short) make(ushort) \
  make(int) make(uint) make(long) make(ulong)

// A function of floats, the same for the narrow types (rounded once), and lane by lane.
#define EMU_UNARY(name, builtin)                                                         \
  inline float name(float x) { return builtin(x); }                                      \
  inline half name(half x) { return half(builtin(float(x))); }                           \
  inline bfloat name(bfloat x) { return bfloat(builtin(float(x))); }                     \
  template <class T, int N> vec<T, N> name(vec<T, N> x) {                                \
    for (T& lane : x.lanes) lane = name(lane);                                           \
    return x;                                                                            \
  }
#define EMU_BINARY(name, builtin)                                                        \
  inline float name(float x, float y) { return builtin(x, y); }                          \
  inline half name(half x, half y) { return half(builtin(float(x), float(y))); }         \
  inline bfloat name(bfloat x, bfloat y) { return bfloat(builtin(float(x), float(y))); } \
  template <class T, int N> vec<T, N> name(vec<T, N> x, vec<T, N> y) {                   \
    for (int i = 0; i < N; ++i) x.lanes[i] = name(x.lanes[i], y.lanes[i]);               \
    return x;                                                                            \
  }

namespace detail {
inline float rsqrt(float x) { return 1.0f / __builtin_sqrtf(x); }
inline float exp10(float x) { return __builtin_powf(10.0f, x); }
inline float fract(float x) { return __builtin_fminf(x - __builtin_floorf(x), 0x1.fffffep-1f); }
inline float sign(float x) { return x > 0 ? 1.0f : x < 0 ? -1.0f : x == x ? x : 0.0f; }
inline float saturate(float x) { return __builtin_fminf(__builtin_fmaxf(x, 0.0f), 1.0f); }
inline float divide(float x, float y) { return x / y; }

// Apple's Metal Shading Language Specification 4.1, section 8.4, table 8.2 (single precision with
// fast math enabled): exp2(x) is off by at most 3 + floor(fabs(2 * x)) ulp. The result here is off
// by that much, up or down by the bits of x; denormal results are flushed, as section 8.1 allows.
inline float fast_exp2(float x) {
  const float right = __builtin_exp2f(x);
  if (right < FLT_MIN) return 0.0f;
  if (!__builtin_isfinite(right)) return right;
  const int units = 3 + int(__builtin_fabsf(2 * x));
  const uint32_t mixed = __builtin_bit_cast(uint32_t, x) * 0x9E3779B1u;
  const uint32_t bits = __builtin_bit_cast(uint32_t, right);
  return __builtin_bit_cast(float, mixed >> 31 ? bits + units : bits - units);
}
}  // namespace detail

#define EMU_TRANSCENDENTAL(exp2f)                                                        \
  EMU_UNARY(exp, __builtin_expf) EMU_UNARY(exp2, exp2f)                                  \
  EMU_UNARY(exp10, metal::detail::exp10) EMU_UNARY(log, __builtin_logf)                  \
  EMU_UNARY(log2, __builtin_log2f) EMU_UNARY(log10, __builtin_log10f)                    \
  EMU_UNARY(sin, __builtin_sinf) EMU_UNARY(cos, __builtin_cosf)                          \
  EMU_UNARY(tan, __builtin_tanf) EMU_UNARY(tanh, __builtin_tanhf)                        \
  EMU_UNARY(sinh, __builtin_sinhf) EMU_UNARY(cosh, __builtin_coshf)                      \
  EMU_UNARY(asin, __builtin_asinf) EMU_UNARY(acos, __builtin_acosf)                      \
  EMU_UNARY(atan, __builtin_atanf) EMU_UNARY(sqrt, __builtin_sqrtf)                      \
  EMU_UNARY(rsqrt, metal::detail::rsqrt) EMU_BINARY(pow, __builtin_powf)                 \
  EMU_BINARY(divide, metal::detail::divide)
EMU_TRANSCENDENTAL(__builtin_exp2f)
namespace fast { EMU_TRANSCENDENTAL(metal::detail::fast_exp2) }
namespace precise { EMU_TRANSCENDENTAL(__builtin_exp2f) }

EMU_UNARY(floor, __builtin_floorf) EMU_UNARY(ceil, __builtin_ceilf)
EMU_UNARY(trunc, __builtin_truncf) EMU_UNARY(round, __builtin_roundf)
EMU_UNARY(rint, __builtin_rintf) EMU_UNARY(fabs, __builtin_fabsf)
EMU_UNARY(fract, detail::fract) EMU_UNARY(sign, detail::sign)
EMU_UNARY(saturate, detail::saturate)
EMU_BINARY(fmin, __builtin_fminf) EMU_BINARY(fmax, __builtin_fmaxf)
EMU_BINARY(fmod, __builtin_fmodf) EMU_BINARY(copysign, __builtin_copysignf)
EMU_BINARY(atan2, __builtin_atan2f)

#define EMU_FLOAT_ORDER(T)                                                               \
  inline T max(T x, T y) { return T(__builtin_fmaxf(float(x), float(y))); }              \
  inline T min(T x, T y) { return T(__builtin_fminf(float(x), float(y))); }              \
  inline T abs(T x) { return T(__builtin_fabsf(float(x))); }                             \
  inline T fma(T x, T y, T z) {                                                          \
    return T(__builtin_fmaf(float(x), float(y), float(z)));                              \
  }                                                                                      \
  inline T clamp(T x, T low, T high) { return min(max(x, low), high); }                  \
  inline T mix(T x, T y, T a) { return x + (y - x) * a; }                                \
  inline T step(T edge, T x) { return T(x < edge ? 0.0f : 1.0f); }                       \
  inline bool isnan(T x) { return __builtin_isnan(float(x)); }                           \
  inline bool isinf(T x) { return __builtin_isinf(float(x)); }                           \
  inline bool isfinite(T x) { return __builtin_isfinite(float(x)); }                     \
  inline T select(T no, T yes, bool which) { return which ? yes : no; }                  \
  inline T ldexp(T x, int n) { return T(__builtin_ldexpf(float(x), n)); }
EMU_EACH_FLOAT(EMU_FLOAT_ORDER)
#define EMU_INT_ORDER(T)                                                                 \
  inline constexpr T max(T x, T y) { return x < y ? y : x; }                             \
  inline constexpr T min(T x, T y) { return y < x ? y : x; }                             \
  inline constexpr T abs(T x) { return x < T(0) ? T(-x) : x; }                           \
  inline constexpr T clamp(T x, T low, T high) { return min(max(x, low), high); }        \
  inline T select(T no, T yes, bool which) { return which ? yes : no; }                  \
  inline T popcount(T x) {                                                               \
    return T(__builtin_popcountll(std::make_unsigned_t<T>(x)));                          \
  }                                                                                      \
  inline T clz(T x) {                                                                    \
    auto bits = std::make_unsigned_t<T>(x);                                              \
    return T(bits ? __builtin_clzll(bits) - (64 - 8 * int(sizeof(T))) : 8 * sizeof(T));  \
  }                                                                                      \
  inline T ctz(T x) { return T(x ? __builtin_ctzll(x) : 8 * sizeof(T)); }
EMU_EACH_INT(EMU_INT_ORDER)

namespace precise { using metal::fma; using metal::fmax; using metal::fmin; using metal::clamp; }
namespace fast { using metal::fmax; using metal::fmin; using metal::clamp; using metal::max;
                 using metal::min; }

#define EMU_LANEWISE(name)                                                               \
  template <class T, int N> vec<T, N> name(vec<T, N> x, vec<T, N> y) {                   \
    for (int i = 0; i < N; ++i) x.lanes[i] = name(x.lanes[i], y.lanes[i]);               \
    return x;                                                                            \
  }
EMU_LANEWISE(max) EMU_LANEWISE(min)
template <class T, int N> vec<T, N> abs(vec<T, N> x) {
  for (T& lane : x.lanes) lane = abs(lane);
  return x;
}
template <class T, int N> vec<T, N> fma(vec<T, N> x, vec<T, N> y, vec<T, N> z) {
  for (int i = 0; i < N; ++i) x.lanes[i] = fma(x.lanes[i], y.lanes[i], z.lanes[i]);
  return x;
}
template <class T, int N> vec<T, N> select(vec<T, N> no, vec<T, N> yes, vec<bool, N> which) {
  for (int i = 0; i < N; ++i) no.lanes[i] = which.lanes[i] ? yes.lanes[i] : no.lanes[i];
  return no;
}
template <class T, int N> T dot(vec<T, N> x, vec<T, N> y) {
  T total = T(x.lanes[0] * y.lanes[0]);
  for (int i = 1; i < N; ++i) total = T(total + x.lanes[i] * y.lanes[i]);
  return total;
}
template <class T, int N> T length_squared(vec<T, N> x) { return dot(x, x); }

inline uint mulhi(uint x, uint y) { return uint(ulong(x) * y >> 32); }
inline int mulhi(int x, int y) { return int(long(x) * y >> 32); }
inline uint reverse_bits(uint x) { return __builtin_bitreverse32(x); }
inline uint extract_bits(uint x, uint offset, uint bits) {
  return bits == 0 ? 0 : x >> offset & (bits == 32 ? ~0u : (1u << bits) - 1);
}

#undef EMU_EACH_FLOAT
#undef EMU_EACH_INT
#undef EMU_UNARY
#undef EMU_BINARY
#undef EMU_TRANSCENDENTAL
#undef EMU_FLOAT_ORDER
#undef EMU_INT_ORDER
#undef EMU_LANEWISE

}  // namespace metal

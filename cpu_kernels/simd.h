// Sixteen floats at a time, in the compiler's own vectors: one register of AVX-512, two of AVX2,
// four of NEON.
#pragma once

#include <cmath>
#include <cstdint>
#include <utility>

#define SGL_INLINE inline __attribute__((always_inline))

namespace sgl {

constexpr int kLanes = 16;

typedef float vec __attribute__((vector_size(64)));
typedef float vec_anywhere __attribute__((vector_size(64), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(64)));
typedef uint32_t uvec __attribute__((vector_size(64)));
typedef uint32_t uvec_anywhere __attribute__((vector_size(64), aligned(1)));
typedef uint16_t half_uvec_anywhere __attribute__((vector_size(32), aligned(1)));

// One register of this processor; compilers keep many of these in registers, and few `vec`.
#if defined(__AVX512F__)
constexpr int kNative = 16;
#elif defined(__AVX__)
constexpr int kNative = 8;
#else
constexpr int kNative = 4;
#endif
constexpr int kNatives = kLanes / kNative;  // in a `vec`
typedef float native __attribute__((vector_size(4 * kNative)));
typedef float native_anywhere __attribute__((vector_size(4 * kNative), aligned(4)));
typedef int32_t native_int __attribute__((vector_size(4 * kNative)));
typedef int32_t native_int_anywhere __attribute__((vector_size(4 * kNative), aligned(1)));
typedef uint16_t native_short __attribute__((vector_size(2 * kNative)));
typedef uint16_t native_short_anywhere __attribute__((vector_size(2 * kNative), aligned(1)));

SGL_INLINE native load_native(const float* p) {
  return *reinterpret_cast<const native_anywhere*>(p);
}
SGL_INLINE native_int load_native_int(const uint8_t* p) {
  return *reinterpret_cast<const native_int_anywhere*>(p);
}
SGL_INLINE native_short load_native_short(const uint8_t* p) {
  return *reinterpret_cast<const native_short_anywhere*>(p);
}
SGL_INLINE void store_native(float* p, native x) { *reinterpret_cast<native_anywhere*>(p) = x; }
SGL_INLINE vec load(const float* p) { return *reinterpret_cast<const vec_anywhere*>(p); }
SGL_INLINE void store(float* p, vec x) { *reinterpret_cast<vec_anywhere*>(p) = x; }
SGL_INLINE vec all(float x) { return vec{} + x; }
SGL_INLINE vec larger(vec a, vec b) { return a > b ? a : b; }
SGL_INLINE vec smaller(vec a, vec b) { return a < b ? a : b; }

SGL_INLINE float sum(vec x) {
  float folded[kLanes];
  store(folded, x);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; i++) folded[i] += folded[i + width];
  return folded[0];
}

SGL_INLINE float largest(vec x) {
  float folded[kLanes];
  store(folded, x);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; i++)
      folded[i] = folded[i] > folded[i + width] ? folded[i] : folded[i + width];
  return folded[0];
}

// e**x for |x| up to 87, beyond that as at the end of the range; 2e-7 relative error.
// 2**n * 2**f with n an integer and f in [-1/2, 1/2]; n goes into the exponent's bits.
SGL_INLINE vec exponential(vec x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2**23: adding it rounds to an integer
  vec t = smaller(larger(x * 1.4426950408889634f, all(-126.0f)), all(126.0f));
  vec rounded = t + kRound;
  vec f = t - (rounded - kRound);
  vec power = f * 0.0013400432165609313f + 0.00967603709787286f;
  power = power * f + 0.05550327214208595f;
  power = power * f + 0.2402210735583043f;
  power = power * f + 0.6931472067106207f;
  power = power * f + 1.000000075495349f;
  return (vec)((ivec)power + ((ivec)rounded << 23));
}

template <int kStep, int... kLane>
SGL_INLINE void exchange(vec& a, vec& b, std::integer_sequence<int, kLane...>) {
  vec low = __builtin_shufflevector(a, b, (kLane & kStep ? kLane - kStep + kLanes : kLane)...);
  vec high = __builtin_shufflevector(a, b, (kLane & kStep ? kLane + kLanes : kLane + kStep)...);
  a = low;
  b = high;
}

template <int kStep>
SGL_INLINE void transpose_step(vec* rows) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i++)
    if (!(i & kStep))
      exchange<kStep>(rows[i], rows[i + kStep], std::make_integer_sequence<int, kLanes>{});
}

// Sixteen rows of sixteen.
SGL_INLINE void transpose(vec* rows) {
  transpose_step<1>(rows);
  transpose_step<2>(rows);
  transpose_step<4>(rows);
  transpose_step<8>(rows);
}

}  // namespace sgl

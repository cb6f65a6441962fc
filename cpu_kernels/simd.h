// Registers of floats, as vector types of the compiler, and functions on them.
#pragma once

#include <cmath>
#include <cstdint>
#include <utility>

#define SGL_INLINE inline __attribute__((always_inline))

namespace sgl {

// Floats in one register. Longer vectors are no substitute: compilers keep those in memory.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

// Sums that fit into the registers together: this many queries or rows, this many registers each.
constexpr int kSumRows = 6;
constexpr int kSumRegisters = kLanes == 8 ? 2 : 4;  // AVX2 has 16 registers, others 32

typedef float vec __attribute__((vector_size(4 * kLanes)));
typedef float vec_anywhere __attribute__((vector_size(4 * kLanes), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(4 * kLanes)));
typedef int32_t ivec_anywhere __attribute__((vector_size(4 * kLanes), aligned(1)));
typedef uint16_t short_vec __attribute__((vector_size(2 * kLanes)));
typedef uint16_t short_vec_anywhere __attribute__((vector_size(2 * kLanes), aligned(1)));

SGL_INLINE vec load(const float* p) { return *reinterpret_cast<const vec_anywhere*>(p); }
SGL_INLINE void store(float* p, vec x) { *reinterpret_cast<vec_anywhere*>(p) = x; }
SGL_INLINE ivec load_ints(const uint8_t* p) { return *reinterpret_cast<const ivec_anywhere*>(p); }
SGL_INLINE short_vec load_shorts(const uint8_t* p) {
  return *reinterpret_cast<const short_vec_anywhere*>(p);
}
SGL_INLINE vec all(float x) { return vec{} + x; }
SGL_INLINE vec larger(vec a, vec b) { return a > b ? a : b; }
SGL_INLINE vec smaller(vec a, vec b) { return a < b ? a : b; }

// 0, 1, 2 … in the lanes.
SGL_INLINE ivec lane_numbers() {
  ivec numbers;
  for (int i = 0; i < kLanes; i++) numbers[i] = i;
  return numbers;
}

template <int kStep, int... kLane>
SGL_INLINE vec swap_lanes(vec x, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(x, x, (kLane ^ kStep)...);
}

// Combines all lanes to one float: each with the lane at distance kStep, then kStep / 2, and so on.
template <int kStep = kLanes / 2, typename Combine>
SGL_INLINE float fold(vec x, const Combine& combine) {
  x = combine(x, swap_lanes<kStep>(x, std::make_integer_sequence<int, kLanes>{}));
  if constexpr (kStep > 1) return fold<kStep / 2>(x, combine);
  return x[0];
}

SGL_INLINE float sum(vec x) {
  return fold(x, [](vec a, vec b) { return a + b; });
}

SGL_INLINE float largest(vec x) { return fold(x, larger); }

// e**x, with a relative error of 2e-7; x is clamped to [-87, 87].
// It is 2**n * 2**f with n an integer and f in [-1/2, 1/2]; n is added to the exponent's bits.
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

// log(1 + u) for u in [0, 1], with a relative error of 2e-7: the series of 2 atanh(u / (2 + u)).
SGL_INLINE vec log_of_one_plus(vec u) {
  const vec s = u / (2 + u), t = s * s;
  vec series = t * (1.0f / 13) + 1.0f / 11;
  series = series * t + 1.0f / 9;
  series = series * t + 1.0f / 7;
  series = series * t + 1.0f / 5;
  series = series * t + 1.0f / 3;
  return 2 * s * (series * t + 1);
}

template <int kStep, int... kLane>
SGL_INLINE void exchange(vec& a, vec& b, std::integer_sequence<int, kLane...>) {
  vec low = __builtin_shufflevector(a, b, (kLane & kStep ? kLane - kStep + kLanes : kLane)...);
  vec high = __builtin_shufflevector(a, b, (kLane & kStep ? kLane + kLanes : kLane + kStep)...);
  a = low;
  b = high;
}

// Transposes kLanes registers: lane j of register i becomes lane i of register j.
template <int kStep = 1>
SGL_INLINE void transpose(vec* rows) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i++)
    if (!(i & kStep))
      exchange<kStep>(rows[i], rows[i + kStep], std::make_integer_sequence<int, kLanes>{});
  if constexpr (2 * kStep < kLanes) transpose<2 * kStep>(rows);
}

}  // namespace sgl

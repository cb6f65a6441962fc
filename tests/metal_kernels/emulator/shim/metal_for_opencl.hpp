// Declarations of Metal's names for clang's C++ for OpenCL, which knows address spaces as Metal
// does. Nothing here runs: only types and spaces are checked.
#pragma once
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#pragma OPENCL EXTENSION __cl_clang_non_portable_kernel_param_types : enable
#define device __global
#define constant __constant
#define threadgroup __local
#define thread __private

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long int64_t;
typedef unsigned long uint64_t;
typedef unsigned long size_t;
typedef half float16_t;
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")

struct bfloat {
  unsigned short bits;
  bfloat() = default;
  explicit constexpr bfloat(float value) : bits(0) {}
  constexpr operator float() const { return 0.0f; }
};
bfloat operator+(bfloat, bfloat);
bfloat operator-(bfloat, bfloat);
bfloat operator*(bfloat, bfloat);
bfloat operator/(bfloat, bfloat);
typedef bfloat bfloat16_t;

namespace metal {

template <class T, int N> struct Lanes;
template <class T> struct Lanes<T, 2> { T x, y; };
template <class T> struct Lanes<T, 3> { T x, y, z; };
template <class T> struct Lanes<T, 4> { T x, y, z, w; };
template <class T, int N> struct vec : Lanes<T, N> {
  vec() = default;
  vec(T);
  template <class... Parts> vec(Parts...);
  T& operator[](int);
  const T& operator[](int) const;
  vec& operator+=(vec);
  vec& operator-=(vec);
  vec& operator*=(vec);
  vec& operator/=(vec);
};
template <class T, int N> vec<T, N> operator+(vec<T, N>, vec<T, N>);
template <class T, int N> vec<T, N> operator-(vec<T, N>, vec<T, N>);
template <class T, int N> vec<T, N> operator*(vec<T, N>, vec<T, N>);
template <class T, int N> vec<T, N> operator/(vec<T, N>, vec<T, N>);
template <class T, int N> T dot(vec<T, N>, vec<T, N>);
#define EMU_TYPES(T) typedef vec<T, 2> T##2; typedef vec<T, 3> T##3; typedef vec<T, 4> T##4;
EMU_TYPES(char) EMU_TYPES(uchar) EMU_TYPES(short) EMU_TYPES(ushort) EMU_TYPES(int) EMU_TYPES(uint)
EMU_TYPES(long) EMU_TYPES(ulong) EMU_TYPES(half) EMU_TYPES(bfloat) EMU_TYPES(float)
EMU_TYPES(bool)

#define EMU_FLOATS(X) X(float) X(half) X(bfloat)
#define EMU_ALL(X) EMU_FLOATS(X) X(char) X(uchar) X(short) X(ushort) X(int) X(uint) X(long) X(ulong)
#define EMU_MATH(T)                                                                           \
  T exp(T); T exp2(T); T exp10(T); T log(T); T log2(T); T sqrt(T); T rsqrt(T); T tanh(T);     \
  T sin(T); T cos(T); T floor(T); T ceil(T); T round(T); T rint(T); T trunc(T); T fabs(T);    \
  T pow(T, T); T fmin(T, T); T fmax(T, T); T fmod(T, T); T divide(T, T); T fma(T, T, T);      \
  T sign(T); T saturate(T); bool isnan(T); bool isinf(T); bool isfinite(T);
#define EMU_ORDER(T) T max(T, T); T min(T, T); T abs(T); T clamp(T, T, T); T select(T, T, bool);
EMU_FLOATS(EMU_MATH)
EMU_ALL(EMU_ORDER)
namespace fast { EMU_FLOATS(EMU_MATH) }
namespace precise { EMU_FLOATS(EMU_MATH) }

enum class mem_flags { mem_none, mem_device, mem_threadgroup, mem_texture };
mem_flags operator|(mem_flags, mem_flags);
void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);
#define EMU_SIMD(T)                                                                           \
  T simd_sum(T); T simd_product(T); T simd_max(T); T simd_min(T); T simd_broadcast_first(T);  \
  T simd_shuffle(T, ushort); T simd_shuffle_xor(T, ushort); T simd_shuffle_up(T, ushort);     \
  T simd_shuffle_down(T, ushort); T simd_broadcast(T, ushort);                                \
  T simd_prefix_inclusive_sum(T); T simd_prefix_exclusive_sum(T);
EMU_ALL(EMU_SIMD)
struct simd_vote { explicit operator ulong() const; };
simd_vote simd_ballot(bool);
bool simd_any(bool);
bool simd_all(bool);
bool simd_is_first();

template <class T, int R, int C> struct simdgroup_matrix {
  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T);
  thread vec<T, 2>& thread_elements();
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;
template <class T, int R, int C> simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T);
#define EMU_TRANSFER(space)                                                                   \
  template <class T> void simdgroup_load(thread simdgroup_matrix<T, 8, 8>&, const space T*,   \
                                         ulong = 8, ulong2 = ulong2(0), bool = false);        \
  template <class T> void simdgroup_store(simdgroup_matrix<T, 8, 8>, space T*, ulong = 8,     \
                                          ulong2 = ulong2(0), bool = false);
EMU_TRANSFER(device)
EMU_TRANSFER(threadgroup)
template <class D, class A, class B, class C>
void simdgroup_multiply_accumulate(thread simdgroup_matrix<D, 8, 8>&, simdgroup_matrix<A, 8, 8>,
                                   simdgroup_matrix<B, 8, 8>, simdgroup_matrix<C, 8, 8>);
template <class D, class A, class B>
void simdgroup_multiply(thread simdgroup_matrix<D, 8, 8>&, simdgroup_matrix<A, 8, 8>,
                        simdgroup_matrix<B, 8, 8>);
}  // namespace metal

using namespace metal;
template <class To, class From> To as_type(From);

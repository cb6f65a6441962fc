// Barriers, simdgroup functions, simdgroup matrices and atomics: everything threads do together.
#pragma once
#include "metal_math.hpp"

// Run by the lane that arrives last on behalf of all: no access of that lane itself.
#define EMU_TOGETHER __attribute__((noinline, disable_sanitizer_instrumentation))
#define EMU_LINE int line = __builtin_LINE()

namespace metal {

enum class mem_flags {
  mem_none = emu::kNone,
  mem_device = emu::kDevice,
  mem_threadgroup = emu::kThreadgroup,
  mem_texture = 4,
};
constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(int(a) | int(b)); }

inline void threadgroup_barrier(mem_flags memory, EMU_LINE) { emu_barrier(int(memory), line); }
inline void simdgroup_barrier(mem_flags memory, EMU_LINE) { emu_simd_barrier(int(memory), line); }

namespace detail {

template <class T> struct Each {  // one lane's part of a simdgroup function
  T value;
  int number;
  T result;
};
template <class T> using Lanes = Each<T>* const*;

template <class T, void combine(Lanes<T>)>
EMU_TOGETHER void combine_each(void* const* payloads) {
  combine(reinterpret_cast<Lanes<T>>(payloads));
}

template <class T, void combine(Lanes<T>)>
inline T together(const char* name, T value, int number, int line) {
  static emu::SimdOp op = {nullptr, combine_each<T, combine>};
  op.name = name;
  Each<T> each = {value, number, value};
  emu_simd(&op, line, &each);
  return each.result;
}

template <class T, class Fold>
EMU_TOGETHER inline void reduce(Lanes<T> lanes, Fold fold) {
  T total = lanes[0]->value;
  for (int i = 1; i < 32 && lanes[i]; ++i) total = fold(total, lanes[i]->value);
  for (int i = 0; i < 32 && lanes[i]; ++i) lanes[i]->result = total;
}

// Lane i takes the value of lane from(i, its number); a negative lane keeps its own.
template <class T, class From>
EMU_TOGETHER inline void shuffle(Lanes<T> lanes, From from) {
  for (int i = 0; i < 32 && lanes[i]; ++i) {
    int source = from(i, lanes[i]->number);
    if (source < 0) continue;
    if (source >= 32 || !lanes[source])
      emu_trap("inactive lane", "lane %d reads from lane %d, which does not exist", i, source);
    lanes[i]->result = lanes[source]->value;
  }
}

}  // namespace detail

#define EMU_REDUCE(name, expression)                                                          \
  namespace detail {                                                                          \
  template <class T> EMU_TOGETHER void name(Lanes<T> lanes) {                                 \
    reduce(lanes, [](T a, T b) __attribute__((disable_sanitizer_instrumentation)) {           \
      return T(expression);                                                                   \
    });                                                                                       \
  }                                                                                           \
  }                                                                                           \
  template <class T> T name(T value, EMU_LINE) {                                              \
    return detail::together<T, detail::name<T>>(#name, value, 0, line);                       \
  }
EMU_REDUCE(simd_sum, a + b)
EMU_REDUCE(simd_product, a * b)
EMU_REDUCE(simd_max, max(a, b))
EMU_REDUCE(simd_min, min(a, b))
EMU_REDUCE(simd_and, a & b)
EMU_REDUCE(simd_or, a | b)
EMU_REDUCE(simd_xor, a ^ b)
#undef EMU_REDUCE

#define EMU_SHUFFLE(name, source)                                                             \
  namespace detail {                                                                          \
  template <class T> EMU_TOGETHER void name(Lanes<T> lanes) {                                 \
    shuffle(lanes, [](int lane, int number) { (void)lane; return source; });                  \
  }                                                                                           \
  }                                                                                           \
  template <class T> T name(T value, ushort number, EMU_LINE) {                               \
    return detail::together<T, detail::name<T>>(#name, value, number, line);                  \
  }
EMU_SHUFFLE(simd_shuffle, number)
EMU_SHUFFLE(simd_broadcast, number)
EMU_SHUFFLE(simd_shuffle_xor, lane ^ number)
EMU_SHUFFLE(simd_shuffle_up, lane - number)
EMU_SHUFFLE(simd_shuffle_down, lane + number < 32 ? lane + number : -1)
EMU_SHUFFLE(simd_shuffle_rotate_up, (lane - number) & 31)
EMU_SHUFFLE(simd_shuffle_rotate_down, (lane + number) & 31)
EMU_SHUFFLE(quad_shuffle, (lane & ~3) + number)
EMU_SHUFFLE(quad_broadcast, (lane & ~3) + number)
EMU_SHUFFLE(quad_shuffle_xor, lane ^ number)
#undef EMU_SHUFFLE

template <class T> T simd_broadcast_first(T value, EMU_LINE) {
  return simd_broadcast(value, 0, line);
}

namespace detail {
template <class T> EMU_TOGETHER void scan(Lanes<T> lanes, bool inclusive) {
  T total = T(0);
  for (int i = 0; i < 32 && lanes[i]; ++i) {
    T next = T(total + lanes[i]->value);
    lanes[i]->result = inclusive ? next : total;
    total = next;
  }
}
template <class T> EMU_TOGETHER void scan_inclusive(Lanes<T> lanes) { scan(lanes, true); }
template <class T> EMU_TOGETHER void scan_exclusive(Lanes<T> lanes) { scan(lanes, false); }
inline EMU_TOGETHER void vote(Lanes<ulong> lanes) {
  ulong votes = 0;
  for (int i = 0; i < 32 && lanes[i]; ++i) votes |= ulong(lanes[i]->value != 0) << i;
  for (int i = 0; i < 32 && lanes[i]; ++i) lanes[i]->result = votes;
}
inline EMU_TOGETHER void count(Lanes<ulong> lanes) {
  int lanes_here = 0;
  while (lanes_here < 32 && lanes[lanes_here]) ++lanes_here;
  for (int i = 0; i < lanes_here; ++i) lanes[i]->result = ~0ul >> (64 - lanes_here);
}
}  // namespace detail

template <class T> T simd_prefix_inclusive_sum(T value, EMU_LINE) {
  return detail::together<T, detail::scan_inclusive<T>>("simd_prefix_inclusive_sum", value, 0, line);
}
template <class T> T simd_prefix_exclusive_sum(T value, EMU_LINE) {
  return detail::together<T, detail::scan_exclusive<T>>("simd_prefix_exclusive_sum", value, 0, line);
}

struct simd_vote {
  typedef ulong vote_t;
  vote_t votes;
  explicit operator vote_t() const { return votes; }
};
inline simd_vote simd_ballot(bool value, EMU_LINE) {
  return {detail::together<ulong, detail::vote>("simd_ballot", ulong(value), 0, line)};
}
inline bool simd_any(bool value, EMU_LINE) {
  return detail::together<ulong, detail::vote>("simd_any", ulong(value), 0, line) != 0;
}
inline bool simd_all(bool value, EMU_LINE) {
  return detail::together<ulong, detail::vote>("simd_all", ulong(!value), 0, line) == 0;
}
inline simd_vote simd_active_threads_mask(EMU_LINE) {
  return {detail::together<ulong, detail::count>("simd_active_threads_mask", 0ul, 0, line)};
}
inline bool simd_is_first() { return emu_self->lane == 0; }

// --- atomics: threads run one at a time, so every plain operation is atomic ----------------------

enum memory_order { memory_order_relaxed };
template <class T> struct atomic { T value; };
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
#define EMU_ATOMIC template <class T> EMU_TOGETHER inline

EMU_ATOMIC T atomic_load_explicit(const volatile atomic<T>* at, memory_order) {
  emu_touch(emu_self->lane, const_cast<atomic<T>*>(at), sizeof(T), 2);
  return at->value;
}
EMU_ATOMIC T atomic_exchange_explicit(volatile atomic<T>* at, std::type_identity_t<T> value,
                                      memory_order) {
  emu_touch(emu_self->lane, const_cast<atomic<T>*>(at), sizeof(T), 2);
  T old = at->value;
  at->value = value;
  return old;
}
EMU_ATOMIC void atomic_store_explicit(volatile atomic<T>* at, std::type_identity_t<T> value,
                                      memory_order order) {
  atomic_exchange_explicit(at, value, order);
}
#define EMU_FETCH(name, expression)                                                            \
  EMU_ATOMIC T atomic_fetch_##name##_explicit(volatile atomic<T>* at,                          \
                                              std::type_identity_t<T> b, memory_order order) { \
    T a = atomic_load_explicit(at, order);                                                     \
    at->value = T(expression);                                                                 \
    return a;                                                                                  \
  }
EMU_FETCH(add, a + b) EMU_FETCH(sub, a - b) EMU_FETCH(or, a | b) EMU_FETCH(and, a & b)
EMU_FETCH(max, a < b ? b : a) EMU_FETCH(min, b < a ? b : a)
#undef EMU_FETCH
#undef EMU_ATOMIC

}  // namespace metal

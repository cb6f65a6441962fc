// Shared by the attention kernels.
//
// A key that is not seen scores MASKED. That is finite on purpose: where a whole tile is masked its
// weights are wrong (exp(0) = 1) but harmless, since exp(MASKED - peak) = 0 wipes them out as soon
// as a real key, or another partial with one, sets the peak.
#include <metal_simdgroup>
#include <metal_simdgroup_matrix>
#include <metal_stdlib>
using namespace metal;

constant constexpr float LOG2_E = 1.44269504088896f;
constant constexpr float MASKED = -1e30f;

// The options of a launch: reals = {scale, softcap}.
template <bool CAPPED>
inline float to_score(float dot, float scale, float softcap) {
  float score = dot * scale;
  if (CAPPED) {
    score = softcap * precise::tanh(score / softcap);
  }
  return score;
}

// exp, of a score relative to a peak: scaled after the peak is taken off, as large scores would
// lose the digits that matter.
inline float exp_of(float score) {
  return exp2(score * LOG2_E);
}

template <int WINDOW>
inline bool is_seen(int key, int query) {
  return key <= query && (WINDOW == 0 || query - key < WINDOW);
}

// First key that a query at `position` or any later one sees.
template <int WINDOW>
inline int first_seen(int position) {
  return WINDOW == 0 ? 0 : max(0, position + 1 - WINDOW);
}

// Four neighbours of a row, moved as one.
template <typename T>
struct alignas(4 * sizeof(T)) Quad {
  T x[4];
};

// A pool stores T itself (scale 1: the conversions change nothing) or int8 levels.
template <typename T, typename Stored>
inline Quad<T> load_quad(const device Stored* row, float scale) {
  const Quad<Stored> stored = *(const device Quad<Stored>*)row;
  Quad<T> quad;
  for (int i = 0; i < 4; i++) {
    quad.x[i] = T(float(stored.x[i]) * scale);
  }
  return quad;
}

// ---- 32 query vectors against a tile of keys: 4 simdgroups, 8 rows of vectors each ----

constant constexpr int TILE_ROWS = 32;
constant constexpr int TILE_THREADS = 128;

// Keys in a tile: keys and values together take at most 17.4 KB of threadgroup memory.
template <typename T, int DIM>
constexpr int tile_keys() {
  return DIM * sizeof(T) > 512 ? 8 : DIM * sizeof(T) > 256 ? 16 : 32;
}

// Elements from one row of a tile to the next; 16 bytes more than a row, against bank conflicts.
template <typename T, int DIM>
constexpr int tile_stride() {
  return DIM + 16 / sizeof(T);
}

// Apple's layout of an 8x8 simdgroup_matrix: a lane holds (row, column) and (row, column + 1).
struct Lane {
  int row;
  int column;
};

inline Lane matrix_lane(uint lane) {
  const int quarter = int(lane) / 4;
  return {(quarter & 4) + (int(lane) / 2) % 4, (quarter & 2) * 2 + (int(lane) % 2) * 2};
}

inline void multiply_add(thread float2& sum, float2 left, float2 right) {
  simdgroup_matrix<float, 8, 8> a, b, c;
  reinterpret_cast<thread float2&>(a.thread_elements()) = left;
  reinterpret_cast<thread float2&>(b.thread_elements()) = right;
  reinterpret_cast<thread float2&>(c.thread_elements()) = sum;
  simdgroup_multiply_accumulate(c, a, b, c);
  sum = reinterpret_cast<thread float2&>(c.thread_elements());
}

// The four lanes of one matrix row are those that differ in bits 0 and 3.
inline float row_max(float x) {
  x = max(x, simd_shuffle_xor(x, 1));
  return max(x, simd_shuffle_xor(x, 8));
}

inline float row_sum(float x) {
  x += simd_shuffle_xor(x, 1);
  return x + simd_shuffle_xor(x, 8);
}

// One lane's share of its query vector and of that vector's softmax: every 8x8 block of the
// vector lies over the simdgroup as a matrix. `out` is relative to `peak`, not yet divided by
// `mass`; the four lanes of a row agree in `peak` and `mass`.
template <int DIM>
struct QueryRow {
  float2 q[DIM / 8];
  float2 out[DIM / 8];
  float peak;
  float mass;
};

template <typename T, int DIM>
inline void begin_row(
    thread QueryRow<DIM>& row, const device T* q, Lane lane, float peak, float mass) {
#pragma clang loop unroll(full)
  for (int f = 0; f < DIM / 8; f++) {
    const int d = 8 * f + lane.column;
    row.q[f] = float2(float(q[d]), float(q[d + 1]));
    row.out[f] = float2(0.0f, 0.0f);
  }
  row.peak = peak;
  row.mass = mass;
}

// Attend to the keys at positions [first, min(first + tile, end)). The tiles belong to the whole
// threadgroup, which must have filled them (a barrier before) and must not refill them until
// everybody is through (a barrier after). Rows from `end` on must be finite.
template <typename T, int DIM, int WINDOW, bool CAPPED>
inline void attend_tile(
    thread QueryRow<DIM>& row,
    const threadgroup T* keys,
    const threadgroup T* values,
    int first,
    int end,
    int position,
    Lane lane,
    float scale,
    float softcap) {
  constexpr int KEYS = tile_keys<T, DIM>();
  constexpr int STRIDE = tile_stride<T, DIM>();
  float2 weights[KEYS / 8];
  float peak = row.peak;
#pragma clang loop unroll(full)
  for (int j = 0; j < KEYS / 8; j++) {
    float2 dots = float2(0.0f, 0.0f);
    const threadgroup T* key = keys + (8 * j + lane.column) * STRIDE + lane.row;
#pragma clang loop unroll(full)
    for (int f = 0; f < DIM / 8; f++) {
      multiply_add(dots, row.q[f], float2(float(key[8 * f]), float(key[8 * f + STRIDE])));
    }
#pragma clang loop unroll(full)
    for (int i = 0; i < 2; i++) {
      const int at = first + 8 * j + lane.column + i;
      const bool seen = at < end && is_seen<WINDOW>(at, position);
      weights[j][i] = seen ? to_score<CAPPED>(dots[i], scale, softcap) : MASKED;
      peak = max(peak, weights[j][i]);
    }
  }
  peak = row_max(peak);
  float mass = 0.0f;
#pragma clang loop unroll(full)
  for (int j = 0; j < KEYS / 8; j++) {
    weights[j] = float2(exp_of(weights[j][0] - peak), exp_of(weights[j][1] - peak));
    mass += weights[j][0] + weights[j][1];
  }
  const float shrink = exp_of(row.peak - peak);
  row.peak = peak;
  row.mass = row.mass * shrink + row_sum(mass);
#pragma clang loop unroll(full)
  for (int f = 0; f < DIM / 8; f++) {
    row.out[f] *= shrink;
#pragma clang loop unroll(full)
    for (int j = 0; j < KEYS / 8; j++) {
      const threadgroup T* value = values + (8 * j + lane.row) * STRIDE + 8 * f + lane.column;
      multiply_add(row.out[f], weights[j], float2(float(value[0]), float(value[1])));
    }
  }
}

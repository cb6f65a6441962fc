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

// exp of a score minus its peak. LOG2_E is multiplied in after the subtraction: before it, large
// scores would lose the digits that matter. Custom kernels compile in safe math, where plain exp2
// is the precise one. The fast one is off by at most 3 + floor(fabs(2 x)) ulp (Metal Shading
// Language Specification 4.1, table 8.2).
inline float exp_of(float score) {
  return fast::exp2(score * LOG2_E);
}

// The factor that rescales sums from `peak` to `new_peak`. It is exactly 1 if the peak stays:
// fast::exp2(0) may differ from 1, and over many tiles the difference would add up.
inline float shrink_to(float new_peak, float peak) {
  return peak == new_peak ? 1.0f : exp_of(peak - new_peak);
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

// Four neighbouring elements of a row, loaded and stored together.
template <typename T>
struct alignas(4 * sizeof(T)) Quad {
  T x[4];
};

// Load four elements as T. They are stored as T (with scale 1 the conversions are exact), or in the
// pool as int8 levels, which are scaled and rounded to T.
template <typename T, typename Stored>
inline Quad<T> load_quad(const device Stored* row, float scale) {
  const Quad<Stored> stored = *(const device Quad<Stored>*)row;
  Quad<T> quad;
  for (int i = 0; i < 4; i++) {
    quad.x[i] = T(float(stored.x[i]) * scale);
  }
  return quad;
}

template <typename T>
inline float4 as_floats(Quad<T> quad) {
  return float4(float(quad.x[0]), float(quad.x[1]), float(quad.x[2]), float(quad.x[3]));
}

// Sum x over a team of 32 or 16 neighbouring lanes.
template <int TEAM>
inline float team_sum(float x) {
  if (TEAM == 32) {
    return simd_sum(x);
  }
#pragma clang loop unroll(full)
  for (int step = 1; step < TEAM; step *= 2) {
    x += simd_shuffle_xor(x, step);
  }
  return x;
}

// ---- 8x8 matrices over a simdgroup ----

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

// ---- query vectors against a tile of keys: 4 simdgroups, 8 rows of vectors each ----
//
// Wide heads are cut into slices of dimensions, so that a lane's registers hold its share: SLICES
// simdgroups own the same 8 rows, a slice each. They add up their partial scores in threadgroup
// memory, compute the same weights, and write a slice of the output each.
//
// One tile of threadgroup memory holds a tile's keys, then its values.

constant constexpr int TILE_THREADS = 128;
constant constexpr int SIMDGROUPS = 4;

// Elements from one row of a tile to the next; 16 bytes more than a row, against bank conflicts.
template <typename T, int WIDTH>
constexpr int tile_stride() {
  return WIDTH + 16 / sizeof(T);
}

// Sizes of the tiles of one specialisation.
template <typename T, int DIM, int VALUE_DIM>
struct Tile {
  // A lane holds (DIM + VALUE_DIM) / 4 floats of query and output over all slices, and should
  // hold at most 96: it has 128 registers.
  static constant constexpr int SLICES =
      DIM + VALUE_DIM > 768 ? 4 : DIM + VALUE_DIM > 384 ? 2 : 1;
  static constant constexpr int SLICE = DIM / SLICES;
  static constant constexpr int VALUE_SLICE = VALUE_DIM / SLICES;
  // Query vectors.
  static constant constexpr int ROWS = 8 * SIMDGROUPS / SLICES;
  // Keys: at most 18.7 KB of threadgroup memory.
  static constant constexpr int KEYS =
      DIM * sizeof(T) > 1152 ? 8 : DIM * sizeof(T) > 512 ? 16 : 32;
  static constant constexpr int ELEMENTS = KEYS * tile_stride<T, DIM>();
  // Pairs of partial scores of all simdgroups; one that is not used if there is one slice.
  static constant constexpr int PARTIALS = SLICES == 1 ? 1 : TILE_THREADS * KEYS / 8;
};

// Keys or values of one KV head. Those at positions below `prefix` are in the pool: position p is
// in slot `slots[first_slot + p]`. Later ones are in `fresh`, which begins with position `prefix`.
template <typename T, typename Stored>
struct Rows {
  const device Stored* pool;
  const device half* scales;
  const device int* slots;
  const device T* fresh;
  int first_slot;
  int prefix;
  int kv_head;
};

template <typename T, typename Stored>
inline Rows<T, Stored> rows_of(
    const device Stored* pool,
    const device half* scales,
    const device int* slots,
    const device T* fresh,
    int first_slot,
    int prefix,
    int kv_head) {
  return {pool, scales, slots, fresh, first_slot, prefix, kv_head};
}

// Fill a tile with the rows at positions [first, first + KEYS). Rows from `end` on are zero, since
// they must be finite.
template <int KEYS, int WIDTH, int KV_HEADS, bool QUANTIZED, typename T, typename Stored>
inline void fill_tile(
    threadgroup T* tile, Rows<T, Stored> rows, int first, int end, int thread_index) {
  constexpr int QUADS = WIDTH / 4;
  for (int i = thread_index; i < KEYS * QUADS; i += TILE_THREADS) {
    const int key = first + i / QUADS;
    const int d = i % QUADS * 4;
    Quad<T> quad = {{T(0), T(0), T(0), T(0)}};
    if (key < rows.prefix) {
      const size_t at = size_t(rows.slots[rows.first_slot + key]) * KV_HEADS + rows.kv_head;
      const float scale = QUANTIZED ? float(rows.scales[at]) : 1.0f;
      quad = load_quad<T>(rows.pool + at * WIDTH + d, scale);
    } else if (key < end) {
      const size_t at = size_t(key - rows.prefix) * KV_HEADS + rows.kv_head;
      quad = load_quad<T>(rows.fresh + at * WIDTH + d, 1.0f);
    }
    *(threadgroup Quad<T>*)(tile + i / QUADS * tile_stride<T, WIDTH>() + d) = quad;
  }
}

// One lane's share of a slice of its query vector and of that vector's softmax: every 8x8 block
// of the slice lies over the simdgroup as a matrix. `out` is relative to `peak`, not yet divided
// by `mass`; the four lanes of a row, and its slices, agree in `peak` and `mass`.
template <int SLICE, int VALUE_SLICE>
struct QueryRow {
  float2 q[SLICE / 8];
  float2 out[VALUE_SLICE / 8];
  float peak;
  float mass;
};

template <typename T, int SLICE, int VALUE_SLICE>
inline void begin_row(
    thread QueryRow<SLICE, VALUE_SLICE>& row,
    const device T* q,
    Lane lane,
    float peak,
    float mass) {
#pragma clang loop unroll(full)
  for (int f = 0; f < SLICE / 8; f++) {
    const int d = 8 * f + lane.column;
    row.q[f] = float2(float(q[d]), float(q[d + 1]));
  }
#pragma clang loop unroll(full)
  for (int f = 0; f < VALUE_SLICE / 8; f++) {
    row.out[f] = float2(0.0f, 0.0f);
  }
  row.peak = peak;
  row.mass = mass;
}

// One lane's share of 8 rows of scores, later of weights: a pair for every 8 keys of the tile.
template <int KEYS>
struct Scores {
  float2 x[KEYS / 8];
};

// Dot products of the slice with that of the tile's keys.
template <typename T, int KEYS, int STRIDE, int SLICE, int VALUE_SLICE>
inline Scores<KEYS> multiply_keys(
    const thread QueryRow<SLICE, VALUE_SLICE>& row, const threadgroup T* keys, Lane lane) {
  Scores<KEYS> dots;
#pragma clang loop unroll(full)
  for (int j = 0; j < KEYS / 8; j++) {
    dots.x[j] = float2(0.0f, 0.0f);
    const threadgroup T* key = keys + (8 * j + lane.column) * STRIDE + lane.row;
#pragma clang loop unroll(full)
    for (int f = 0; f < SLICE / 8; f++) {
      multiply_add(dots.x[j], row.q[f], float2(float(key[8 * f]), float(key[8 * f + STRIDE])));
    }
  }
  return dots;
}

// Write this slice's scores for the other slices; a barrier must follow.
template <int KEYS>
inline void share_scores(threadgroup float2* partial, Scores<KEYS> scores, int thread_index) {
#pragma clang loop unroll(full)
  for (int j = 0; j < KEYS / 8; j++) {
    partial[j * TILE_THREADS + thread_index] = scores.x[j];
  }
}

// Add up the scores of all slices, in the same order for each.
template <int KEYS, int SLICES>
inline Scores<KEYS> sum_scores(const threadgroup float2* partial, int thread_index) {
  const int first_slice = thread_index / (32 * SLICES) * (32 * SLICES) + thread_index % 32;
  Scores<KEYS> sum;
#pragma clang loop unroll(full)
  for (int j = 0; j < KEYS / 8; j++) {
    sum.x[j] = float2(0.0f, 0.0f);
#pragma clang loop unroll(full)
    for (int slice = 0; slice < SLICES; slice++) {
      sum.x[j] += partial[j * TILE_THREADS + first_slice + 32 * slice];
    }
  }
  return sum;
}

// Turn dot products with the keys at positions [first, min(first + KEYS, end)) into weights, and
// take them into the row's softmax.
template <int KEYS, int WINDOW, bool CAPPED, int SLICE, int VALUE_SLICE>
inline void weigh(
    thread QueryRow<SLICE, VALUE_SLICE>& row,
    thread Scores<KEYS>& scores,
    int first,
    int end,
    int position,
    Lane lane,
    float scale,
    float softcap) {
  float peak = row.peak;
#pragma clang loop unroll(full)
  for (int j = 0; j < KEYS / 8; j++) {
#pragma clang loop unroll(full)
    for (int i = 0; i < 2; i++) {
      const int at = first + 8 * j + lane.column + i;
      const bool seen = at < end && is_seen<WINDOW>(at, position);
      scores.x[j][i] = seen ? to_score<CAPPED>(scores.x[j][i], scale, softcap) : MASKED;
      peak = max(peak, scores.x[j][i]);
    }
  }
  peak = row_max(peak);
  float mass = 0.0f;
#pragma clang loop unroll(full)
  for (int j = 0; j < KEYS / 8; j++) {
    scores.x[j] = float2(exp_of(scores.x[j][0] - peak), exp_of(scores.x[j][1] - peak));
    mass += scores.x[j][0] + scores.x[j][1];
  }
  const float shrink = shrink_to(peak, row.peak);
  row.peak = peak;
  row.mass = row.mass * shrink + row_sum(mass);
#pragma clang loop unroll(full)
  for (int f = 0; f < VALUE_SLICE / 8; f++) {
    row.out[f] *= shrink;
  }
}

// Add the slice of the tile's weighted values to the output.
template <typename T, int KEYS, int STRIDE, int SLICE, int VALUE_SLICE>
inline void add_values(
    thread QueryRow<SLICE, VALUE_SLICE>& row,
    Scores<KEYS> weights,
    const threadgroup T* values,
    Lane lane) {
#pragma clang loop unroll(full)
  for (int f = 0; f < VALUE_SLICE / 8; f++) {
#pragma clang loop unroll(full)
    for (int j = 0; j < KEYS / 8; j++) {
      const threadgroup T* value = values + (8 * j + lane.row) * STRIDE + 8 * f + lane.column;
      multiply_add(row.out[f], weights.x[j], float2(float(value[0]), float(value[1])));
    }
  }
}

// Attend to the keys at positions [first, min(first + KEYS, end)). With VALUES_IN_KEYS a value is
// the first VALUE_DIM elements of its key, and is read from the tile of keys. `tile` and `partial`
// belong to the whole threadgroup: all its threads must call this together.
template <
    typename T, int DIM, int VALUE_DIM, int KV_HEADS, int WINDOW, bool CAPPED, bool QUANTIZED,
    bool VALUES_IN_KEYS, typename Row, typename Stored>
inline void attend_tile(
    thread Row& row,
    threadgroup T* tile,
    threadgroup float2* partial,
    Rows<T, Stored> keys,
    Rows<T, Stored> values,
    int first,
    int end,
    int position,
    int thread_index,
    Lane lane,
    float scale,
    float softcap) {
  typedef Tile<T, DIM, VALUE_DIM> Sizes;
  constexpr int KEYS = Sizes::KEYS;
  constexpr int VALUE_STRIDE = tile_stride<T, VALUES_IN_KEYS ? DIM : VALUE_DIM>();
  const int slice = thread_index / 32 % Sizes::SLICES;
  fill_tile<KEYS, DIM, KV_HEADS, QUANTIZED>(tile, keys, first, end, thread_index);
  threadgroup_barrier(mem_flags::mem_threadgroup);  // the keys are whole
  Scores<KEYS> scores = multiply_keys<T, KEYS, tile_stride<T, DIM>()>(
      row, tile + slice * Sizes::SLICE, lane);
  if (Sizes::SLICES > 1) {
    share_scores<KEYS>(partial, scores, thread_index);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);  // the keys are read, the scores shared
  if (!VALUES_IN_KEYS) {
    fill_tile<KEYS, VALUE_DIM, KV_HEADS, QUANTIZED>(tile, values, first, end, thread_index);
  }
  if (Sizes::SLICES > 1) {
    scores = sum_scores<KEYS, Sizes::SLICES>(partial, thread_index);
  }
  weigh<KEYS, WINDOW, CAPPED>(row, scores, first, end, position, lane, scale, softcap);
  if (!VALUES_IN_KEYS) {
    threadgroup_barrier(mem_flags::mem_threadgroup);  // the values are whole
  }
  add_values<T, KEYS, VALUE_STRIDE>(
      row, scores, tile + slice * Sizes::VALUE_SLICE, lane);
  threadgroup_barrier(mem_flags::mem_threadgroup);  // the values are read
}

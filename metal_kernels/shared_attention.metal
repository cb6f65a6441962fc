// Shared attention: all rows that share a stretch of prefix attend to it at once (Hydragen, arXiv
// 2402.05099), a chunk of keys to a threadgroup. Leaves partial softmaxes for merge_partials.
//
// A threadgroup owns one tile of 32 query vectors of one KV head: (row, token, query head of the
// group) triples, in that order, so that consecutive vectors are consecutive tokens of q. Every
// key of a span lies before every query; only a window can hide it.
//
// grid (128, tiles, KV_HEADS), threadgroup (128, 1, 1)
// tiles: {first slot, first position, keys, first row, rows, first partial, shortest prefix of
//   these rows, first vector} each
// rows: {first slot, first private position, prefix, 0} each;  ints: {tail length, width, tokens}
constexpr int GROUP = HEADS / KV_HEADS;
constexpr int KEYS = tile_keys<T, DIM>();
constexpr int STRIDE = tile_stride<T, DIM>();
constexpr int QUADS = DIM / 4;

// Owned by all 128 threads: filled together, read by every simdgroup.
threadgroup T key_tile[KEYS * STRIDE];
threadgroup T value_tile[KEYS * STRIDE];

const int thread_index = int(thread_position_in_threadgroup.x);
const int kv_head = int(threadgroup_position_in_grid.z);
const Lane lane = matrix_lane(thread_index_in_simdgroup);

const int tile = 8 * int(threadgroup_position_in_grid.y);
const int first_slot = tiles[tile];
const int first_position = tiles[tile + 1];
const int end = first_position + tiles[tile + 2];
const int first_row = tiles[tile + 3];
const int first_partial = tiles[tile + 5];
const int tokens = ints[2];
const int vectors = tiles[tile + 4] * tokens * GROUP;
const int oldest_new = ints[0] - tokens;  // column of a row's first new token

// Vectors past the last one repeat it, and are not written.
const int vector = tiles[tile + 7] + 8 * int(simdgroup_index_in_threadgroup) + lane.row;
const int mine = min(vector, vectors - 1);
const int token = mine / GROUP;  // counted from the first row's first
const int head = kv_head * GROUP + mine % GROUP;
const int prefix = rows[4 * (first_row + token / tokens) + 2];
const int position = prefix + oldest_new + token % tokens;

QueryRow<DIM> row;
const size_t q_row = size_t(first_row * tokens + token) * HEADS + head;
begin_row<T, DIM>(row, q + q_row * DIM, lane, MASKED, 0.0f);

const int skipped = max(0, first_seen<WINDOW>(tiles[tile + 6] + oldest_new) - first_position);
for (int first = first_position + skipped / KEYS * KEYS; first < end; first += KEYS) {
  for (int i = thread_index; i < KEYS * QUADS; i += TILE_THREADS) {
    const int key = first + i / QUADS;
    const int d = i % QUADS * 4;
    Quad<T> key_quad = {{T(0), T(0), T(0), T(0)}};
    Quad<T> value_quad = key_quad;
    if (key < end) {
      const int slot = slots[first_slot + key - first_position];
      const size_t pool_row = size_t(slot) * KV_HEADS + kv_head;
      const float key_scale = QUANTIZED ? float(key_scales[pool_row]) : 1.0f;
      const float value_scale = QUANTIZED ? float(value_scales[pool_row]) : 1.0f;
      key_quad = load_quad<T>(pool_keys + pool_row * DIM + d, key_scale);
      value_quad = load_quad<T>(pool_values + pool_row * DIM + d, value_scale);
    }
    *(threadgroup Quad<T>*)(key_tile + i / QUADS * STRIDE + d) = key_quad;
    *(threadgroup Quad<T>*)(value_tile + i / QUADS * STRIDE + d) = value_quad;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);  // the tiles are whole
  attend_tile<T, DIM, WINDOW, CAPPED>(
      row, key_tile, value_tile, first, end, position, lane, reals[0], reals[1]);
  threadgroup_barrier(mem_flags::mem_threadgroup);  // nobody reads them any more
}

if (vector < vectors) {
  const size_t partial = size_t(first_partial * tokens + token) * HEADS + head;
#pragma clang loop unroll(full)
  for (int f = 0; f < DIM / 8; f++) {
    const size_t at = partial * DIM + 8 * f + lane.column;
    out[at] = row.out[f][0];
    out[at + 1] = row.out[f][1];
  }
  if (lane.column == 0) {
    peaks[partial] = row.peak;
    masses[partial] = row.mass;
  }
}

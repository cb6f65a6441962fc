// Extend attention: new tokens attend to a prefix in the pool and causally to each other, fused
// (flash attention, arXiv 2205.14135; extend attention, arXiv 2312.07104).
//
// A threadgroup owns one tile of 32 query vectors of one row and one KV head. A vector is a (token,
// query head of the group) pair, so each key is read once for the whole group. Keys are numbered
// by position: below `prefix` they lie in the pool behind `slots`, above in new_keys/new_values.
//
// grid (128, tiles, KV_HEADS), threadgroup (128, 1, 1)
// rows: {first slot, prefix, first token, tokens} each;  tiles: {row, first vector} each
constexpr int GROUP = HEADS / KV_HEADS;
constexpr int KEYS = tile_keys<T, DIM>();
constexpr int STRIDE = tile_stride<T, DIM>();
constexpr int QUADS = DIM / 4;

// Owned by all 128 threads: filled together, read by every simdgroup.
threadgroup T key_tile[KEYS * STRIDE];
threadgroup T value_tile[KEYS * STRIDE];

const int thread_index = int(thread_position_in_threadgroup.x);
const int tile = int(threadgroup_position_in_grid.y);
const int kv_head = int(threadgroup_position_in_grid.z);
const Lane lane = matrix_lane(thread_index_in_simdgroup);

const int row_index = tiles[2 * tile];
const int first_vector = tiles[2 * tile + 1];
const int first_slot = rows[4 * row_index];
const int prefix = rows[4 * row_index + 1];
const int first_token = rows[4 * row_index + 2];
const int vectors = rows[4 * row_index + 3] * GROUP;

// Vectors past the last one repeat it, and are not written.
const int vector = first_vector + 8 * int(simdgroup_index_in_threadgroup) + lane.row;
const int mine = min(vector, vectors - 1);
const int token = mine / GROUP;
const int head = kv_head * GROUP + mine % GROUP;
const int position = prefix + token;
const size_t vector_offset = (size_t(first_token + token) * HEADS + head) * DIM;

// A sink is a key without a value that everybody sees first.
QueryRow<DIM> row;
const float sink = SINKS ? float(sinks[head]) : MASKED;
begin_row<T, DIM>(row, q + vector_offset, lane, sink, SINKS ? 1.0f : 0.0f);

const int last_vector = min(first_vector + TILE_ROWS, vectors) - 1;
const int end = prefix + last_vector / GROUP + 1;
const int begin = first_seen<WINDOW>(prefix + first_vector / GROUP) / KEYS * KEYS;
for (int first = begin; first < end; first += KEYS) {
  for (int i = thread_index; i < KEYS * QUADS; i += TILE_THREADS) {
    const int key = first + i / QUADS;
    const int d = i % QUADS * 4;
    Quad<T> key_quad = {{T(0), T(0), T(0), T(0)}};
    Quad<T> value_quad = key_quad;
    if (key < prefix) {
      const size_t pool_row = size_t(slots[first_slot + key]) * KV_HEADS + kv_head;
      const float key_scale = QUANTIZED ? float(key_scales[pool_row]) : 1.0f;
      const float value_scale = QUANTIZED ? float(value_scales[pool_row]) : 1.0f;
      key_quad = load_quad<T>(pool_keys + pool_row * DIM + d, key_scale);
      value_quad = load_quad<T>(pool_values + pool_row * DIM + d, value_scale);
    } else if (key < end) {
      const size_t new_row = size_t(first_token + key - prefix) * KV_HEADS + kv_head;
      key_quad = load_quad<T>(new_keys + new_row * DIM + d, 1.0f);
      value_quad = load_quad<T>(new_values + new_row * DIM + d, 1.0f);
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
#pragma clang loop unroll(full)
  for (int f = 0; f < DIM / 8; f++) {
    const size_t at = vector_offset + 8 * f + lane.column;
    out[at] = T(row.out[f][0] / row.mass);
    out[at + 1] = T(row.out[f][1] / row.mass);
  }
}

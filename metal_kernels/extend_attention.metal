// Extend attention: new tokens attend to a prefix in the pool and causally to each other, fused
// (flash attention, arXiv 2205.14135; extend attention, arXiv 2312.07104).
//
// A threadgroup owns one tile of query vectors of one row and one KV head. A vector is a (token,
// query head of the group) pair, so each key is read once for the whole group. Keys are numbered
// by position. Those below `prefix` are in the pool, in the row's slots; the others are in
// new_keys and new_values.
//
// grid (128, tiles, KV_HEADS), threadgroup (128, 1, 1)
// rows: {first slot, prefix, first token, tokens} each;  tiles: {row, first vector} each
constexpr int GROUP = HEADS / KV_HEADS;
typedef Tile<T, DIM, VALUE_DIM> Sizes;

// Owned by all 128 threads: filled together, read by every simdgroup.
threadgroup T tile[Sizes::ELEMENTS];
threadgroup float2 partial[Sizes::PARTIALS];

const int thread_index = int(thread_position_in_threadgroup.x);
const int kv_head = int(threadgroup_position_in_grid.z);
const int slice = int(simdgroup_index_in_threadgroup) % Sizes::SLICES;
const int first_row = int(simdgroup_index_in_threadgroup) / Sizes::SLICES * 8;
const Lane lane = matrix_lane(thread_index_in_simdgroup);

const int row_index = tiles[2 * int(threadgroup_position_in_grid.y)];
const int first_vector = tiles[2 * int(threadgroup_position_in_grid.y) + 1];
const int first_slot = rows[4 * row_index];
const int prefix = rows[4 * row_index + 1];
const int first_token = rows[4 * row_index + 2];
const int vectors = rows[4 * row_index + 3] * GROUP;

// Vectors past the last one repeat it, and are not written.
const int vector = first_vector + first_row + lane.row;
const int mine = min(vector, vectors - 1);
const int token = mine / GROUP;
const int head = kv_head * GROUP + mine % GROUP;
const int position = prefix + token;
const size_t q_row = size_t(first_token + token) * HEADS + head;

// A sink is one more key, without a value: its score starts the softmax of each query.
QueryRow<Sizes::SLICE, Sizes::VALUE_SLICE> row;
const float sink = SINKS ? float(sinks[head]) : MASKED;
begin_row<T>(row, q + q_row * DIM + slice * Sizes::SLICE, lane, sink, SINKS ? 1.0f : 0.0f);

const device T* fresh_keys = new_keys + size_t(first_token) * KV_HEADS * DIM;
const device T* fresh_values = new_values + size_t(first_token) * KV_HEADS * VALUE_DIM;
const auto keys =
    rows_of<T>(pool_keys, key_scales, slots, fresh_keys, first_slot, prefix, kv_head);
const auto values =
    rows_of<T>(pool_values, value_scales, slots, fresh_values, first_slot, prefix, kv_head);
const int last_vector = min(first_vector + Sizes::ROWS, vectors) - 1;
const int end = prefix + last_vector / GROUP + 1;
const int begin = first_seen<WINDOW>(prefix + first_vector / GROUP) / Sizes::KEYS * Sizes::KEYS;
for (int first = begin; first < end; first += Sizes::KEYS) {
  attend_tile<T, DIM, VALUE_DIM, KV_HEADS, WINDOW, CAPPED, QUANTIZED, VALUES_IN_KEYS>(
      row, tile, partial, keys, values, first, end, position, thread_index, lane, reals[0],
      reals[1]);
}

if (vector < vectors) {
#pragma clang loop unroll(full)
  for (int f = 0; f < Sizes::VALUE_SLICE / 8; f++) {
    const size_t at = q_row * VALUE_DIM + slice * Sizes::VALUE_SLICE + 8 * f + lane.column;
    out[at] = T(row.out[f][0] / row.mass);
    out[at + 1] = T(row.out[f][1] / row.mass);
  }
}

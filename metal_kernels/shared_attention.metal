// Shared attention: all rows that share a stretch of prefix attend to it at once (Hydragen, arXiv
// 2402.05099), a chunk of keys to a threadgroup. Writes partial softmaxes, which merge_partials
// merges.
//
// A threadgroup owns one tile of query vectors of one KV head: (row, token, query head of the
// group) triples, in that order, so that consecutive vectors are consecutive tokens of q. Every
// key of a span lies before every query; only a window can hide it.
//
// grid (128, tiles, KV_HEADS), threadgroup (128, 1, 1)
// tiles: {first slot, first position, keys, first row, rows, first partial, shortest prefix of
//   these rows, first vector} each
// rows: {first slot, first private position, prefix, 0} each;  ints: {tail length, width, tokens}
constexpr int GROUP = HEADS / KV_HEADS;
typedef Tile<T, DIM, VALUE_DIM> Sizes;

threadgroup T tile[Sizes::ELEMENTS];
threadgroup float2 partial[Sizes::PARTIALS];

const int thread_index = int(thread_position_in_threadgroup.x);
const int kv_head = int(threadgroup_position_in_grid.z);
const int slice = int(simdgroup_index_in_threadgroup) % Sizes::SLICES;
const Lane lane = matrix_lane(thread_index_in_simdgroup);

const int piece = 8 * int(threadgroup_position_in_grid.y);
const int first_position = tiles[piece + 1];
const int first_slot = tiles[piece] - first_position;  // where position 0 would be in `slots`
const int end = first_position + tiles[piece + 2];
const int first_row = tiles[piece + 3];
const int first_partial = tiles[piece + 5];
const int tokens = ints[2];
const int vectors = tiles[piece + 4] * tokens * GROUP;
const int oldest_new = ints[0] - tokens;  // column of a row's first new token

// Vectors past the last one repeat it, and are not written.
const int vector =
    tiles[piece + 7] + int(simdgroup_index_in_threadgroup) / Sizes::SLICES * 8 + lane.row;
const int mine = min(vector, vectors - 1);
const int token = mine / GROUP;  // counted from the first token of the first row
const int head = kv_head * GROUP + mine % GROUP;
const int prefix = rows[4 * (first_row + token / tokens) + 2];
const int position = prefix + oldest_new + token % tokens;

QueryRow<Sizes::SLICE, Sizes::VALUE_SLICE> row;
const size_t q_row = size_t(first_row * tokens + token) * HEADS + head;
begin_row<T>(row, q + q_row * DIM + slice * Sizes::SLICE, lane, MASKED, 0.0f);

// All keys are in the pool: the pointer to new keys is not read, and q is passed for it.
const auto keys = rows_of<T>(pool_keys, key_scales, slots, q, first_slot, end, kv_head);
const auto values = rows_of<T>(pool_values, value_scales, slots, q, first_slot, end, kv_head);
const int skipped = max(0, first_seen<WINDOW>(tiles[piece + 6] + oldest_new) - first_position);
const int begin = first_position + skipped / Sizes::KEYS * Sizes::KEYS;
for (int first = begin; first < end; first += Sizes::KEYS) {
  attend_tile<T, DIM, VALUE_DIM, KV_HEADS, WINDOW, CAPPED, QUANTIZED, VALUES_IN_KEYS>(
      row, tile, partial, keys, values, first, end, position, thread_index, lane, reals[0],
      reals[1]);
}

if (vector < vectors) {
  const size_t at = size_t(first_partial * tokens + token) * HEADS + head;
#pragma clang loop unroll(full)
  for (int f = 0; f < Sizes::VALUE_SLICE / 8; f++) {
    const size_t d = at * VALUE_DIM + slice * Sizes::VALUE_SLICE + 8 * f + lane.column;
    out[d] = row.out[f][0];
    out[d + 1] = row.out[f][1];
  }
  if (slice == 0 && lane.column == 0) {
    peaks[at] = row.peak;
    masses[at] = row.mass;
  }
}

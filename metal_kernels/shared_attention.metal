// Shared attention: all rows that share a stretch of prefix attend to it at once (Hydragen, arXiv
// 2402.05099), a chunk of keys to a threadgroup. Leaves partial softmaxes for merge_partials.
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
constexpr int KEYS = tile_keys<T, DIM>();
constexpr int STRIDE = tile_stride<T, DIM>();
constexpr int VALUE_STRIDE = tile_stride<T, VALUE_DIM>();
constexpr int SLICES = tile_slices<DIM, VALUE_DIM>();
constexpr int SLICE = DIM / SLICES;
constexpr int VALUE_SLICE = VALUE_DIM / SLICES;
constexpr int PARTIAL = partial_scores<T, DIM, VALUE_DIM>();

// Owned by all 128 threads: filled together, read by every simdgroup.
threadgroup T tile[KEYS * STRIDE];
threadgroup float2 partial[PARTIAL];

const int thread_index = int(thread_position_in_threadgroup.x);
const int kv_head = int(threadgroup_position_in_grid.z);
const int slice = int(simdgroup_index_in_threadgroup) % SLICES;
const Lane lane = matrix_lane(thread_index_in_simdgroup);

const int piece = 8 * int(threadgroup_position_in_grid.y);
const int first_position = tiles[piece + 1];
const int first_slot = tiles[piece] - first_position;  // of position 0, were it in this stretch
const int end = first_position + tiles[piece + 2];
const int first_row = tiles[piece + 3];
const int first_partial = tiles[piece + 5];
const int tokens = ints[2];
const int vectors = tiles[piece + 4] * tokens * GROUP;
const int oldest_new = ints[0] - tokens;  // column of a row's first new token

// Vectors past the last one repeat it, and are not written.
const int vector =
    tiles[piece + 7] + int(simdgroup_index_in_threadgroup) / SLICES * 8 + lane.row;
const int mine = min(vector, vectors - 1);
const int token = mine / GROUP;  // counted from the first row's first
const int head = kv_head * GROUP + mine % GROUP;
const int prefix = rows[4 * (first_row + token / tokens) + 2];
const int position = prefix + oldest_new + token % tokens;

QueryRow<SLICE, VALUE_SLICE> row;
const size_t q_row = size_t(first_row * tokens + token) * HEADS + head;
begin_row<T>(row, q + q_row * DIM + slice * SLICE, lane, MASKED, 0.0f);

const int skipped = max(0, first_seen<WINDOW>(tiles[piece + 6] + oldest_new) - first_position);
for (int first = first_position + skipped / KEYS * KEYS; first < end; first += KEYS) {
  fill_tile<T, KEYS, DIM, KV_HEADS, QUANTIZED>(
      tile, pool_keys, key_scales, slots, q, first_slot, end, first, end, kv_head, thread_index);
  threadgroup_barrier(mem_flags::mem_threadgroup);  // the keys are whole
  Scores<KEYS> scores = multiply_keys<T, KEYS, STRIDE>(row, tile + slice * SLICE, lane);
  if (SLICES > 1) {
    share_scores<KEYS>(partial, scores, thread_index);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);  // the keys are read, the scores shared
  fill_tile<T, KEYS, VALUE_DIM, KV_HEADS, QUANTIZED>(
      tile, pool_values, value_scales, slots, q, first_slot, end, first, end, kv_head,
      thread_index);
  if (SLICES > 1) {
    scores = sum_scores<KEYS, SLICES>(partial, thread_index);
  }
  weigh<KEYS, WINDOW, CAPPED>(row, scores, first, end, position, lane, reals[0], reals[1]);
  threadgroup_barrier(mem_flags::mem_threadgroup);  // the values are whole
  add_values<T, KEYS, VALUE_STRIDE>(row, scores, tile + slice * VALUE_SLICE, lane);
  threadgroup_barrier(mem_flags::mem_threadgroup);  // the values are read
}

if (vector < vectors) {
  const size_t at = size_t(first_partial * tokens + token) * HEADS + head;
#pragma clang loop unroll(full)
  for (int f = 0; f < VALUE_SLICE / 8; f++) {
    const size_t d = at * VALUE_DIM + slice * VALUE_SLICE + 8 * f + lane.column;
    out[d] = row.out[f][0];
    out[d + 1] = row.out[f][1];
  }
  if (slice == 0 && lane.column == 0) {
    peaks[at] = row.peak;
    masses[at] = row.mass;
  }
}

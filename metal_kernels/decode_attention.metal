// Decode attention: a row's few new tokens attend to one chunk of the row's own keys (split KV,
// flash-decoding). Leaves partial softmaxes for merge_partials.
//
// A simdgroup owns one item (a chunk of a row's keys) and a block of Q_BLOCK query vectors of one
// KV head: (token, query head of the group) pairs, so that the block reads each key once. Lanes
// divide the dimensions: lane i has d = i, i + 32 ... No threadgroup memory, no barrier. Keys are
// numbered by position: below `prefix` they lie in the pool behind `slots`, above in the tail.
//
// grid (32, items, KV_HEADS * blocks), threadgroup (32, up to 4, 1)
// items: {row, first position, end, 0} each;  rows: {first slot, first private position, prefix, 0}
// each;  ints: {tail length, width, tokens}
constexpr int GROUP = HEADS / KV_HEADS;
constexpr int PARTS = (DIM + 31) / 32;
constexpr int STEP = 4;  // keys fetched ahead of their use

const int lane = int(thread_index_in_simdgroup);
const int item = int(thread_position_in_grid.y);
const int tail_length = ints[0];
const int width = ints[1];
const int tokens = ints[2];
const int vectors = tokens * GROUP;
const int blocks = (vectors + Q_BLOCK - 1) / Q_BLOCK;
const int kv_head = int(thread_position_in_grid.z) / blocks;
const int first_vector = int(thread_position_in_grid.z) % blocks * Q_BLOCK;

const int row = items[4 * item];
const int first_slot = rows[4 * row] - rows[4 * row + 1];  // of position 0, were it private
const int prefix = rows[4 * row + 2];
const int oldest_query = prefix + tail_length - tokens;
const int begin = max(items[4 * item + 1], first_seen<WINDOW>(oldest_query));
const int end = min(items[4 * item + 2], prefix + tail_length);

float queries[Q_BLOCK][PARTS];
float sums[Q_BLOCK][PARTS];
float peak[Q_BLOCK];
float mass[Q_BLOCK];
#pragma clang loop unroll(full)
for (int v = 0; v < Q_BLOCK; v++) {
  // vectors past the last one repeat it, and are not written
  const int vector = min(first_vector + v, vectors - 1);
  const int head = kv_head * GROUP + vector % GROUP;
  const size_t q_row = size_t(row * tokens + vector / GROUP) * HEADS + head;
#pragma clang loop unroll(full)
  for (int part = 0; part < PARTS; part++) {
    const int d = lane + 32 * part;
    queries[v][part] = d < DIM ? float(q[q_row * DIM + d]) : 0.0f;
    sums[v][part] = 0.0f;
  }
  peak[v] = MASKED;
  mass[v] = 0.0f;
}

for (int first = begin; first < end; first += STEP) {
  float keys[STEP][PARTS];
  float values[STEP][PARTS];
#pragma clang loop unroll(full)
  for (int j = 0; j < STEP; j++) {
    const int key = min(first + j, end - 1);
    const bool pooled = key < prefix;
    size_t at;
    float key_scale = 1.0f;
    float value_scale = 1.0f;
    if (pooled) {
      at = size_t(slots[first_slot + key]) * KV_HEADS + kv_head;
      key_scale = QUANTIZED ? float(key_scales[at]) : 1.0f;
      value_scale = QUANTIZED ? float(value_scales[at]) : 1.0f;
    } else {
      at = (size_t(row) * width + key - prefix) * KV_HEADS + kv_head;
    }
#pragma clang loop unroll(full)
    for (int part = 0; part < PARTS; part++) {
      const int d = lane + 32 * part;
      keys[j][part] = 0.0f;
      values[j][part] = 0.0f;
      if (d < DIM && pooled) {
        // through T, as everywhere: quantized values are rounded to the model's dtype
        keys[j][part] = float(T(float(pool_keys[at * DIM + d]) * key_scale));
        values[j][part] = float(T(float(pool_values[at * DIM + d]) * value_scale));
      } else if (d < DIM) {
        keys[j][part] = float(tail_keys[at * DIM + d]);
        values[j][part] = float(tail_values[at * DIM + d]);
      }
    }
  }
#pragma clang loop unroll(full)
  for (int v = 0; v < Q_BLOCK; v++) {
    const int position = oldest_query + min(first_vector + v, vectors - 1) / GROUP;
    float scores[STEP];
    float new_peak = peak[v];
#pragma clang loop unroll(full)
    for (int j = 0; j < STEP; j++) {
      float dot = 0.0f;
#pragma clang loop unroll(full)
      for (int part = 0; part < PARTS; part++) {
        dot += queries[v][part] * keys[j][part];
      }
      dot = simd_sum(dot);
      const bool seen = first + j < end && is_seen<WINDOW>(first + j, position);
      scores[j] = seen ? to_score<CAPPED>(dot, reals[0], reals[1]) : MASKED;
      new_peak = max(new_peak, scores[j]);
    }
    const float shrink = exp_of(peak[v] - new_peak);
    peak[v] = new_peak;
    mass[v] *= shrink;
#pragma clang loop unroll(full)
    for (int part = 0; part < PARTS; part++) {
      sums[v][part] *= shrink;
    }
#pragma clang loop unroll(full)
    for (int j = 0; j < STEP; j++) {
      const float weight = exp_of(scores[j] - new_peak);
      mass[v] += weight;
#pragma clang loop unroll(full)
      for (int part = 0; part < PARTS; part++) {
        sums[v][part] += weight * values[j][part];
      }
    }
  }
}

#pragma clang loop unroll(full)
for (int v = 0; v < Q_BLOCK; v++) {
  const int vector = first_vector + v;
  if (vector < vectors) {
    const int head = kv_head * GROUP + vector % GROUP;
    const size_t partial = size_t(item * tokens + vector / GROUP) * HEADS + head;
#pragma clang loop unroll(full)
    for (int part = 0; part < PARTS; part++) {
      const int d = lane + 32 * part;
      if (d < DIM) {
        out[partial * DIM + d] = sums[v][part];
      }
    }
    if (lane == 0) {
      peaks[partial] = peak[v];
      masses[partial] = mass[v];
    }
  }
}

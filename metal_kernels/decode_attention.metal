// Decode attention: a row's few new tokens attend to one chunk of the row's own keys (split KV,
// flash-decoding). Writes partial softmaxes, which merge_partials merges.
//
// A simdgroup owns one item (a chunk of a row's keys) and a block of Q_BLOCK query vectors of one
// KV head: (token, query head of the group) pairs, so that the block reads each key once. A team
// of lanes takes one key at a time, and each lane four neighbouring dimensions of it. All 32 lanes
// are one team; where heads are narrow, they are two teams of 16, which take different keys and
// are merged at the end. No threadgroup memory, no barrier.
// Keys are numbered by position. Those below `prefix` are in the pool, in the row's slots; the
// others are in the tail.
//
// grid (32, items, KV_HEADS * blocks), threadgroup (32, up to 4, 1)
// items: {row, first position, end, 0} each;  rows: {first slot, first private position, prefix, 0}
// each;  ints: {tail length, width, tokens}
constexpr int GROUP = HEADS / KV_HEADS;
constexpr int TEAM = DIM > 64 ? 32 : 16;
constexpr int TEAMS = 32 / TEAM;
constexpr int QUADS = (DIM / 4 + TEAM - 1) / TEAM;
constexpr int VALUE_QUADS = (VALUE_DIM / 4 + TEAM - 1) / TEAM;
// Quads of a key and its value that a lane holds; a value in its key takes none of its own.
constexpr int HELD = QUADS + (VALUES_IN_KEYS ? 0 : VALUE_QUADS);
constexpr int STEP = HELD > 4 ? 1 : HELD > 3 ? 2 : 4;  // keys that a team fetches ahead

const int team = int(thread_index_in_simdgroup) / TEAM;
const int lane = int(thread_index_in_simdgroup) % TEAM;
const int item = int(thread_position_in_grid.y);
const int tail_length = ints[0];
const int width = ints[1];
const int tokens = ints[2];
const int vectors = tokens * GROUP;
const int blocks = (vectors + Q_BLOCK - 1) / Q_BLOCK;
const int kv_head = int(thread_position_in_grid.z) / blocks;
const int first_vector = int(thread_position_in_grid.z) % blocks * Q_BLOCK;

const int row = items[4 * item];
const int first_slot = rows[4 * row] - rows[4 * row + 1];  // where position 0 would be in `slots`
const int prefix = rows[4 * row + 2];
const int oldest_query = prefix + tail_length - tokens;
const int begin = max(items[4 * item + 1], first_seen<WINDOW>(oldest_query));
const int end = min(items[4 * item + 2], prefix + tail_length);

float4 queries[Q_BLOCK][QUADS];
float4 sums[Q_BLOCK][VALUE_QUADS];
float peak[Q_BLOCK];
float mass[Q_BLOCK];
#pragma clang loop unroll(full)
for (int v = 0; v < Q_BLOCK; v++) {
  // vectors past the last one repeat it, and are not written
  const int vector = min(first_vector + v, vectors - 1);
  const int head = kv_head * GROUP + vector % GROUP;
  const size_t q_row = size_t(row * tokens + vector / GROUP) * HEADS + head;
#pragma clang loop unroll(full)
  for (int part = 0; part < QUADS; part++) {
    const int d = 4 * (lane + TEAM * part);
    queries[v][part] = d < DIM ? as_floats(load_quad<T>(q + q_row * DIM + d, 1.0f)) : float4(0.0f);
  }
#pragma clang loop unroll(full)
  for (int part = 0; part < VALUE_QUADS; part++) {
    sums[v][part] = float4(0.0f);
  }
  peak[v] = MASKED;
  mass[v] = 0.0f;
}

for (int first = begin; first < end; first += STEP * TEAMS) {
  float4 keys[STEP][QUADS];
  float4 values[STEP][VALUE_QUADS];
#pragma clang loop unroll(full)
  for (int j = 0; j < STEP; j++) {
    const int key = min(first + TEAMS * j + team, end - 1);
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
    for (int part = 0; part < QUADS; part++) {
      const int d = 4 * (lane + TEAM * part);
      keys[j][part] = float4(0.0f);
      if (d < DIM && pooled) {
        keys[j][part] = as_floats(load_quad<T>(pool_keys + at * DIM + d, key_scale));
      } else if (d < DIM) {
        keys[j][part] = as_floats(load_quad<T>(tail_keys + at * DIM + d, 1.0f));
      }
    }
#pragma clang loop unroll(full)
    for (int part = 0; part < VALUE_QUADS; part++) {
      const int d = 4 * (lane + TEAM * part);
      values[j][part] = float4(0.0f);
      if (d < VALUE_DIM && VALUES_IN_KEYS) {
        values[j][part] = keys[j][part];
      } else if (d < VALUE_DIM && pooled) {
        values[j][part] = as_floats(load_quad<T>(pool_values + at * VALUE_DIM + d, value_scale));
      } else if (d < VALUE_DIM) {
        values[j][part] = as_floats(load_quad<T>(tail_values + at * VALUE_DIM + d, 1.0f));
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
      float partial = 0.0f;
#pragma clang loop unroll(full)
      for (int part = 0; part < QUADS; part++) {
        partial += dot(queries[v][part], keys[j][part]);
      }
      const float product = team_sum<TEAM>(partial);
      const int key = first + TEAMS * j + team;
      const bool seen = key < end && is_seen<WINDOW>(key, position);
      scores[j] = seen ? to_score<CAPPED>(product, reals[0], reals[1]) : MASKED;
      new_peak = max(new_peak, scores[j]);
    }
    const float shrink = shrink_to(new_peak, peak[v]);
    peak[v] = new_peak;
    mass[v] *= shrink;
#pragma clang loop unroll(full)
    for (int part = 0; part < VALUE_QUADS; part++) {
      sums[v][part] *= shrink;
    }
#pragma clang loop unroll(full)
    for (int j = 0; j < STEP; j++) {
      const float weight = exp_of(scores[j] - new_peak);
      mass[v] += weight;
#pragma clang loop unroll(full)
      for (int part = 0; part < VALUE_QUADS; part++) {
        sums[v][part] += float4(weight) * values[j][part];
      }
    }
  }
}

#pragma clang loop unroll(full)
for (int v = 0; v < Q_BLOCK; v++) {
  if (TEAMS > 1) {
    const float new_peak = max(peak[v], simd_shuffle_xor(peak[v], TEAM));
    const float shrink = shrink_to(new_peak, peak[v]);
    peak[v] = new_peak;
    mass[v] *= shrink;
    mass[v] += simd_shuffle_xor(mass[v], TEAM);
#pragma clang loop unroll(full)
    for (int part = 0; part < VALUE_QUADS; part++) {
#pragma clang loop unroll(full)
      for (int i = 0; i < 4; i++) {
        const float mine = sums[v][part][i] * shrink;
        sums[v][part][i] = mine + simd_shuffle_xor(mine, TEAM);
      }
    }
  }
  const int vector = first_vector + v;
  if (vector < vectors && team == 0) {
    const int head = kv_head * GROUP + vector % GROUP;
    const size_t at = size_t(item * tokens + vector / GROUP) * HEADS + head;
#pragma clang loop unroll(full)
    for (int part = 0; part < VALUE_QUADS; part++) {
      const int d = 4 * (lane + TEAM * part);
      if (d < VALUE_DIM) {
        *(device float4*)(out + at * VALUE_DIM + d) = sums[v][part];
      }
    }
    if (lane == 0) {
      peaks[at] = peak[v];
      masses[at] = mass[v];
    }
  }
}

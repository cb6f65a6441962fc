// Writes new keys and values into the pool's own memory, behind MLX's back: MLX gives a kernel no
// way to write to an input. The token in `done` carries the order: it depends on this launch, the
// next write takes it as `previous`, and so must every reader of the pool.
//
// A simdgroup owns one token and KV head, and nobody else writes its slot. Lane i has d = i,
// i + 32 ... An int8 pool gets one symmetric scale a token and head.
//
// grid (32, tokens, KV_HEADS), threadgroup (32, 1, 1);  ints: {tokens}
constexpr int PARTS = (DIM + 31) / 32;
constexpr float LEVELS = 127.0f;
constexpr float LARGEST_SCALE = 65504.0f;  // of half

const int lane = int(thread_index_in_simdgroup);
const int token = int(thread_position_in_grid.y);
const int kv_head = int(thread_position_in_grid.z);
const size_t from = size_t(token) * KV_HEADS + kv_head;
const size_t to = size_t(slots[token]) * KV_HEADS + kv_head;

float key_scale = 1.0f;
float value_scale = 1.0f;
if (QUANTIZED) {
  float key_peak = 0.0f;
  float value_peak = 0.0f;
  for (int d = lane; d < DIM; d += 32) {
    key_peak = max(key_peak, abs(float(new_keys[from * DIM + d])));
    value_peak = max(value_peak, abs(float(new_values[from * DIM + d])));
  }
  // rounded to half first: levels must belong to the scale that is stored
  const half stored_key_scale = half(min(simd_max(key_peak) / LEVELS, LARGEST_SCALE));
  const half stored_value_scale = half(min(simd_max(value_peak) / LEVELS, LARGEST_SCALE));
  key_scale = float(stored_key_scale);
  value_scale = float(stored_value_scale);
  if (lane == 0) {
    ((device half*)key_scales)[to] = stored_key_scale;
    ((device half*)value_scales)[to] = stored_value_scale;
  }
}

for (int part = 0; part < PARTS; part++) {
  const int d = lane + 32 * part;
  if (d < DIM) {
    write_pool<QUANTIZED>(pool_keys + to * DIM + d, new_keys[from * DIM + d], key_scale);
    write_pool<QUANTIZED>(pool_values + to * DIM + d, new_values[from * DIM + d], value_scale);
  }
}

if (token == 0 && kv_head == 0 && lane < 8) {
  done[lane] = previous[lane] + ints[0];
}

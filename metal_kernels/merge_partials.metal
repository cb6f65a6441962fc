// Merges the partial softmaxes of a query vector into one (log-sum-exp): those of the row's own
// chunks, which are consecutive, and those of the spans that the row shares with other rows.
//
// A simdgroup owns one query vector. Lane i computes the dimensions i, i + 32 ... on its own.
//
// grid (32, tokens of q * HEADS, 1), threadgroup (32, up to 4, 1)
// merges: {first own partial, own partials, first in shared_partials, shared partials} by row
constexpr int PARTS = (VALUE_DIM + 31) / 32;

const int lane = int(thread_index_in_simdgroup);
const int vector = int(thread_position_in_grid.y);
const int head = vector % HEADS;
const int tokens = ints[2];
const int row = vector / HEADS / tokens;
const int token = vector / HEADS % tokens;
const int own_first = merges[4 * row];
const int own_count = merges[4 * row + 1];
const int shared_first = merges[4 * row + 2];
const int count = own_count + merges[4 * row + 3];

// A sink is one more key, without a value: its score starts the softmax of each query.
float peak = SINKS ? float(sinks[head]) : MASKED;
float mass = SINKS ? 1.0f : 0.0f;
float sums[PARTS];
#pragma clang loop unroll(full)
for (int part = 0; part < PARTS; part++) {
  sums[part] = 0.0f;
}

for (int i = 0; i < count; i++) {
  const bool own = i < own_count;
  const int index = own ? own_first + i : shared_partials[shared_first + i - own_count];
  const size_t partial = size_t(index * tokens + token) * HEADS + head;
  // float(): one of the two may be `constant` (fewer than 8 elements) and the other `device`
  const float its_peak = own ? float(own_peaks[partial]) : float(shared_peaks[partial]);
  const float its_mass = own ? float(own_masses[partial]) : float(shared_masses[partial]);
  const float new_peak = max(peak, its_peak);
  const float shrink = shrink_to(new_peak, peak);
  const float weight = shrink_to(new_peak, its_peak);
  peak = new_peak;
  mass = mass * shrink + its_mass * weight;
#pragma clang loop unroll(full)
  for (int part = 0; part < PARTS; part++) {
    const int d = lane + 32 * part;
    if (d < VALUE_DIM) {
      const size_t at = partial * VALUE_DIM + d;
      sums[part] = sums[part] * shrink + (own ? own_out[at] : shared_out[at]) * weight;
    }
  }
}

#pragma clang loop unroll(full)
for (int part = 0; part < PARTS; part++) {
  const int d = lane + 32 * part;
  if (d < VALUE_DIM) {
    out[size_t(vector) * VALUE_DIM + d] = T(sums[part] / mass);
  }
}

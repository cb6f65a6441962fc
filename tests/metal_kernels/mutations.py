"""Faults for the kernels' sources, and what is to catch each of them.

`caught_by` is the kind of a `Trap`, or WRONG: the output is not the reference's. A fault whose
`old` text is no longer in its file, exactly once, is an error: rewrite it with the kernel.
"""

from __future__ import annotations

from typing import NamedTuple

WRONG = "wrong output"
RACE = "data race"
BOUNDS = "out of bounds"
UNINITIALISED = "uninitialised read"
KEYS_WHOLE, KEYS_READ, VALUES_WHOLE, VALUES_READ = (
    f"threadgroup_barrier(mem_flags::mem_threadgroup);  // the {what}"
    for what in (
        "keys are whole",
        "keys are read, the scores shared",
        "values are whole",
        "values are read",
    )
)


class Mutation(NamedTuple):
    """`work` names the call that shows the fault; see `work.WORK`."""

    what: str
    file: str
    work: str
    old: str
    new: str
    caught_by: str


def _of(file: str, *faults: tuple[str, str, str, str, str]) -> tuple[Mutation, ...]:
    return tuple(Mutation(fault[0], file, *fault[1:]) for fault in faults)


MUTATIONS = (
    *_of(
        "attention.h",
        ("a token does not see itself", "extend", "key <= query", "key < query", WRONG),
        ("window one too wide", "extend window", "query - key < W", "query - key <= W", WRONG),
        ("window starts late", "decode window", "position + 1 - W", "position + 2 - W", WRONG),
        ("soft-cap's factor lost", "extend capped", "score = softcap *", "score =", WRONG),
        ("natural for binary exponent", "extend", "score * LOG2_E", "score", WRONG),
        ("no guard of -inf", "extend window", "MASKED = -1e30f", "MASKED = -INFINITY", WRONG),
        ("tile rows overlap", "extend", "return WIDTH + 16 / sizeof(T)", "return WIDTH - 4", RACE),
        ("wrong lane map", "extend", "{(quarter & 4)", "{(quarter & 8)", RACE),
        ("keys not transposed", "extend", "lane.column) * STRIDE + lane.row",
         "lane.row) * STRIDE + lane.column", BOUNDS),
        ("peak of half a row", "extend capped", "max(x, simd_shuffle_xor(x, 8))", "x", WRONG),
        ("mass of half a row", "extend", "return x + simd_shuffle_xor(x, 8)", "return x", WRONG),
        ("old output not shrunk", "extend", "row.out[f] *= shrink;", "", WRONG),
        ("keys past the end count", "decode shared", "at < end && is_seen", "is_seen", WRONG),
        ("peak not subtracted", "extend capped", "scores.x[j][1] - peak", "scores.x[j][1]", WRONG),
        ("another row's slots", "extend", "slots[rows.first_slot + key]", "slots[key]", WRONG),
        ("prefix one key longer", "extend", "if (key < rows.prefix)",
         "if (key <= rows.prefix)", BOUNDS),
        ("keys past the last are read", "extend", "else if (key < end)", "else", BOUNDS),
        ("wrong scale row", "extend int8", "float(rows.scales[at])",
         "float(rows.scales[at / KV_HEADS])",
         WRONG),
        ("one slice of scores alone", "extend wide", "slice < SLICES; s", "slice < 1; s", WRONG),
        ("another block's scores", "extend wide", "thread_index / (32 * SLICES) * (32 * SLICES) +",
         "", WRONG),
        ("slices shared by one lane of four", "extend wide",
         "partial[j * TILE_THREADS + thread_index]",
         "partial[j * TILE_THREADS + thread_index / 4 * 4]", RACE),
        ("keys read before they are whole", "extend", KEYS_WHOLE, "", UNINITIALISED),
        ("keys overwritten while read", "extend", KEYS_READ, "", RACE),
        ("values read before they are whole", "extend", VALUES_WHOLE, "", RACE),
        ("values overwritten while read", "extend", VALUES_READ, "", RACE),
        ("scores summed before they are shared", "extend wide", KEYS_READ, "", RACE),
        ("barrier of the wrong memory", "extend", VALUES_READ,
         "threadgroup_barrier(mem_flags::mem_device);", RACE),
        ("tile too small", "extend", "KEYS * tile_stride<T, DIM>();", "KEYS * DIM;", BOUNDS),
        ("every slice reads the first's keys", "extend wide", "tile + slice * Sizes::SLICE",
         "tile", WRONG),
        ("every slice reads the first's values", "extend wide", "tile + slice * Sizes::VALUE_SLICE",
         "tile", WRONG),
        ("values as wide as keys", "extend latent", "VALUES_IN_KEYS ? DIM : VALUE_DIM", "DIM",
         WRONG),
        ("values in keys as narrow as values", "extend in keys",
         "VALUES_IN_KEYS ? DIM : VALUE_DIM", "VALUE_DIM", UNINITIALISED),
        ("values in keys filled anew", "decode in keys", "if (!VALUES_IN_KEYS) {\n    fill_tile",
         "if (true) {\n    fill_tile", RACE),
        ("a team sums its neighbour too", "decode narrow", "TEAM == 32", "TEAM >= 16", WRONG),
        ("quads an element further", "decode", "const Quad<Stored> stored = *(const device "
         "Quad<Stored>*)row;", "const Quad<Stored> stored = *(const device Quad<Stored>*)"
         "(row + 1);", BOUNDS),
    ),
    *_of(
        "extend_attention.metal",
        ("idle simdgroups leave early", "extend", "const int token = mine / GROUP;",
         "if (vector - lane.row >= vectors) return; const int token = mine / GROUP;",
         "divergent barrier"),
        ("wrong GQA map", "extend", "kv_head * GROUP + mine % GROUP",
         "kv_head + mine % GROUP * KV_HEADS", WRONG),
        ("vectors past the last are read", "extend", "min(vector, vectors - 1)", "vector", BOUNDS),
        ("one vector too many", "extend", "if (vector < vectors)", "if (vector <= vectors)", RACE),
        ("window starts a tile late", "extend window", "/ GROUP) / Sizes::KEYS",
         "/ GROUP + Sizes::KEYS - 1) / Sizes::KEYS", WRONG),
        ("row stride of the wrong head count", "extend", "size_t(first_token) * KV_HEADS * DIM",
         "size_t(first_token) * HEADS * DIM", BOUNDS),
        ("every slice writes the first's output", "extend wide",
         "slice * Sizes::VALUE_SLICE + 8 * f",
         "8 * f", RACE),
        ("output as wide as keys", "extend latent", "q_row * VALUE_DIM", "q_row * DIM", BOUNDS),
    ),
    *_of(
        "decode_attention.metal",
        ("lanes not summed", "decode", "team_sum<TEAM>(partial)", "partial", WRONG),
        ("a lane misses the sum", "decode", "const float product = team_sum<TEAM>(partial);",
         "float product = partial; if (lane != 5) product = team_sum<TEAM>(partial);",
         "divergent simd operation"),
        ("keys fetched past the end", "decode", "min(first + TEAMS * j + team, end - 1)",
         "first + TEAMS * j + team", WRONG),
        ("lanes past the dimension read", "decode", "d < DIM ? as_floats", "true ? as_floats",
         BOUNDS),
        ("tail's width confused", "decode", "size_t(row) * width +", "size_t(row) * tail_length +",
         WRONG),
        ("tail dropped", "decode", "min(items[4 * item + 2], prefix + tail_length)",
         "min(items[4 * item + 2], prefix)", WRONG),
        ("first of several new tokens", "decode", "prefix + tail_length - tokens",
         "prefix + tail_length - 1", WRONG),
        ("all lanes write the peak", "decode", "if (lane == 0)", "if (lane >= 0)", RACE),
        ("both teams write", "decode narrow", "vector < vectors && team == 0", "vector < vectors",
         RACE),
        ("one team's mass", "decode narrow", "mass[v] += simd_shuffle_xor(mass[v], TEAM);", "",
         WRONG),
        ("one team's values", "decode narrow", "mine + simd_shuffle_xor(mine, TEAM)", "mine",
         WRONG),
        ("teams merged without their peaks", "decode narrow",
         "max(peak[v], simd_shuffle_xor(peak[v], TEAM))", "peak[v]", WRONG),
        ("a team judges its neighbour's key", "decode narrow",
         "const int key = first + TEAMS * j + team;", "const int key = first + TEAMS * j;", WRONG),
        ("a value's row as wide as a key's", "decode latent", "pool_values + at * VALUE_DIM",
         "pool_values + at * DIM", BOUNDS),
        ("values in keys from the next part", "decode in keys",
         "values[j][part] = keys[j][part];", "values[j][part] = keys[j][part + 1];", WRONG),
    ),
    *_of(
        "shared_attention.metal",
        ("the first rows' queries", "decode shared", "first_row = tiles[piece + 3]",
         "first_row = tiles[piece + 3] - tiles[piece + 3]", WRONG),
        ("a slot further", "decode shared", "tiles[piece] - first_position",
         "tiles[piece] - first_position + 1", BOUNDS),
        ("window of the longest row", "decode shared window", "tiles[piece + 6] + oldest_new",
         "tiles[piece + 6] + oldest_new + Sizes::KEYS", WRONG),
        ("every slice writes the peak", "decode latent", "slice == 0 && lane.column == 0",
         "lane.column == 0", RACE),
        ("slices of the query mixed up", "decode latent", "q_row * DIM + slice * Sizes::SLICE",
         "q_row * DIM", WRONG),
    ),
    *_of(
        "merge_partials.metal",
        ("parts weigh the same", "decode", "shrink_to(new_peak, its_peak)", "1.0f", WRONG),
        ("swapped spans", "decode shared", "shared_partials[shared_first + i - own_count]",
         "shared_partials[i - own_count]", WRONG),
        ("sink without mass", "decode window", "SINKS ? 1.0f : 0.0f", "0.0f", WRONG),
        ("lanes past the dimension write", "decode", "if (d < VALUE_DIM) {\n    out[",
         "if (true) {\n    out[", RACE),
    ),
)  # fmt: skip

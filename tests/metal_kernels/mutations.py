"""Faults for the kernels' sources, and what is to catch each of them.

`caught_by` is the kind of a `Trap`, or WRONG: the output is not the reference's. A fault whose
`old` text is no longer in its file, exactly once, is an error: rewrite it with the kernel.
"""

from __future__ import annotations

from typing import NamedTuple

WRONG = "wrong output"
RACE = "data race"
BOUNDS = "out of bounds"
WHOLE = "threadgroup_barrier(mem_flags::mem_threadgroup);  // the tiles are whole"
UNREAD = "threadgroup_barrier(mem_flags::mem_threadgroup);  // nobody reads them any more"


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
        ("tile rows overlap", "extend", "return DIM + 16 / sizeof(T)", "return DIM - 4", RACE),
        ("wrong lane map", "extend", "{(quarter & 4)", "{(quarter & 8)", RACE),
        ("keys not transposed", "extend", "lane.column) * STRIDE + lane.row",
         "lane.row) * STRIDE + lane.column", BOUNDS),
        ("peak of half a row", "extend capped", "max(x, simd_shuffle_xor(x, 8))", "x", WRONG),
        ("mass of half a row", "extend", "return x + simd_shuffle_xor(x, 8)", "return x", WRONG),
        ("old output not shrunk", "extend", "row.out[f] *= shrink;", "", WRONG),
        ("keys past the end count", "decode shared", "at < end && is_seen", "is_seen", WRONG),
        ("peak not subtracted", "extend capped", "weights[j][1] - peak", "weights[j][1]", WRONG),
    ),
    *_of(
        "extend_attention.metal",
        ("tiles read before they are whole", "extend", WHOLE, "", "uninitialised read"),
        ("tiles refilled while read", "extend", UNREAD, "", RACE),
        ("barrier of the wrong memory", "extend", UNREAD,
         "threadgroup_barrier(mem_flags::mem_device);", RACE),
        ("idle simdgroups leave early", "extend", "const int token = mine / GROUP;",
         "if (vector - lane.row >= vectors) return; const int token = mine / GROUP;",
         "divergent barrier"),
        ("wrong GQA map", "extend", "kv_head * GROUP + mine % GROUP",
         "kv_head + mine % GROUP * KV_HEADS", WRONG),
        ("vectors past the last are read", "extend", "min(vector, vectors - 1)", "vector", BOUNDS),
        ("one vector too many", "extend", "if (vector < vectors)", "if (vector <= vectors)", RACE),
        ("another row's slots", "extend", "slots[first_slot + key]", "slots[key]", WRONG),
        ("prefix one key longer", "extend", "if (key < prefix)", "if (key <= prefix)", BOUNDS),
        ("keys past the last are read", "extend", "else if (key < end)", "else", BOUNDS),
        ("value tile too small", "extend", "value_tile[KEYS * STRIDE]", "value_tile[KEYS * DIM]",
         BOUNDS),
        ("wrong scale row", "extend int8", "float(key_scales[pool_row])",
         "float(key_scales[pool_row / KV_HEADS])", WRONG),
        ("window starts a tile late", "extend window", "/ GROUP) / KEYS * KEYS",
         "/ GROUP + KEYS - 1) / KEYS * KEYS", WRONG),
        ("row stride of the wrong head count", "extend", "new_row = size_t(first_token + key - "
         "prefix) * KV_HEADS", "new_row = size_t(first_token + key - prefix) * HEADS", BOUNDS),
    ),
    *_of(
        "decode_attention.metal",
        ("lanes not summed", "decode", "dot = simd_sum(dot);", "", WRONG),
        ("a lane misses the sum", "decode", "dot = simd_sum(dot);",
         "if (lane != 5) dot = simd_sum(dot);", "divergent simd operation"),
        ("keys fetched past the end", "decode", "min(first + j, end - 1)", "first + j", WRONG),
        ("lanes past the dimension read", "decode", "d < DIM ? float(q", "true ? float(q", BOUNDS),
        ("tail's width confused", "decode", "size_t(row) * width +", "size_t(row) * tail_length +",
         WRONG),
        ("tail dropped", "decode", "min(items[4 * item + 2], prefix + tail_length)",
         "min(items[4 * item + 2], prefix)", WRONG),
        ("first of several new tokens", "decode", "prefix + tail_length - tokens",
         "prefix + tail_length - 1", WRONG),
        ("all lanes write the peak", "decode", "if (lane == 0)", "if (lane >= 0)", RACE),
    ),
    *_of(
        "shared_attention.metal",
        ("tiles refilled while read", "decode shared", UNREAD, "", RACE),
        ("the first rows' queries", "decode shared", "first_row = tiles[tile + 3]",
         "first_row = tiles[tile + 3] - tiles[tile + 3]", WRONG),
        ("a slot further", "decode shared", "key - first_position]", "key - first_position + 1]",
         BOUNDS),
        ("window of the longest row", "decode shared window", "tiles[tile + 6] + oldest_new",
         "tiles[tile + 6] + oldest_new + KEYS", WRONG),
    ),
    *_of(
        "merge_partials.metal",
        ("parts weigh the same", "decode", "exp_of(its_peak - new_peak)", "1.0f", WRONG),
        ("swapped spans", "decode shared", "shared_partials[shared_first + i - own_count]",
         "shared_partials[i - own_count]", WRONG),
        ("sink without mass", "decode window", "SINKS ? 1.0f : 0.0f", "0.0f", WRONG),
        ("lanes past the dimension write", "decode", "if (d < DIM) {\n    out[",
         "if (true) {\n    out[", RACE),
    ),
)  # fmt: skip

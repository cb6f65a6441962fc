from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sgl_mlx.runtime.vision.byte_lru import ByteLRU

LIMIT = 10
OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["put", "get"]), st.integers(0, 5), st.integers(0, 12))
)


@given(OPERATIONS)
def test_it_keeps_what_was_used_last_as_far_as_the_bytes_go(
    operations: list[tuple[str, int, int]],
) -> None:
    cache: ByteLRU[int, int] = ByteLRU(LIMIT)
    model: list[tuple[int, int]] = []  # key and size, the one used last at the end
    for what, key, size in operations:
        known = dict(model)
        if what == "get":
            assert cache.get(key) == known.get(key)
            if key in known:
                model = [(k, s) for k, s in model if k != key] + [(key, known[key])]
        else:
            cache.put(key, size, size)
            model = [(k, s) for k, s in model if k != key] + [(key, size)] * (size <= LIMIT)
            while sum(s for _, s in model) > LIMIT:
                model.pop(0)
        assert cache.used == sum(s for _, s in model) <= LIMIT
        assert len(cache) == len(model)


def test_cleared_it_has_nothing() -> None:
    cache: ByteLRU[str, int] = ByteLRU(LIMIT)
    cache.put("a", 1, 3)
    cache.clear()
    assert cache.get("a") is None
    assert cache.used == 0

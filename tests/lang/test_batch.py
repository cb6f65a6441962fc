"""Batches: a row's error loses no other row, and a batch that is cancelled ends whole."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sgl_mlx as sgl
from sgl_mlx.errors import BatchError
from tests.lang.selective import NEVER, Selective, read


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.sampled_from(["now", "raise", "wrong"]), max_size=30),
    st.integers(1, 8),
    st.sampled_from(["list", "generator", "async list", "async generator"]),
)
def test_a_row_that_raises_is_named_and_loses_no_other(
    words: list[str], num_threads: int, form: str
) -> None:
    @sgl.function
    def program(s: Any, word: str) -> str:
        s += word + sgl.gen("x")
        if word == "raise":
            raise LookupError(word)
        return word

    rows = [{"nonsense": 1} if word == "wrong" else {"word": word} for word in words]
    options: dict[str, Any] = {"backend": Selective(), "num_threads": num_threads}
    states: list[Any] = []

    async def collect() -> None:
        if form == "async list":
            states.extend(await program.run_batch_async(rows, **options))  # type: ignore[arg-type]
        else:
            made: Any = await program.run_batch_async(rows, generator_style=True, **options)
            async for state in made:
                states.append(state)

    def run() -> None:
        if form.startswith("async"):
            asyncio.run(collect())
        else:
            states.extend(program.run_batch(rows, generator_style=form == "generator", **options))

    bad = [i for i, word in enumerate(words) if word != "now"]
    if bad:
        with pytest.raises(BatchError, match=f"{len(bad)} of {len(rows)} rows raised") as caught:
            run()
        assert list(caught.value.errors) == bad
        assert caught.value.__cause__ is caught.value.errors[bad[0]]
        states = states or caught.value.states
    else:
        run()
    assert len(states) == len(rows)
    for word, state in zip(words, states, strict=True):
        if word == "now":
            assert (state.ret_value, state["x"]) == ("now", "answer")
        else:
            assert isinstance(state.error(), LookupError if word == "raise" else sgl.ProgramError)


@pytest.mark.parametrize("generator", [False, True])
def test_cancelling_a_batch_ends_its_rows(generator: bool) -> None:
    backend = Selective()
    rows = [[random.choice(["now", NEVER])] for _ in range(60)] + [[NEVER]]

    async def collect() -> None:
        made: Any = await read.run_batch_async(rows, backend=backend, generator_style=generator)
        async for _ in made:
            pass

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(collect(), 0.1)

    asyncio.run(main())
    backend.check_nothing_is_left()


def test_a_generator_of_a_batch_that_is_closed_ends_its_rows() -> None:
    backend = Selective()
    rows = [["now"]] + [[NEVER]] * 20
    states: Any = read.run_batch(rows, backend=backend, generator_style=True)
    assert next(states).ret_value == "answer"
    states.close()
    backend.check_nothing_is_left()

from __future__ import annotations

import pytest

from sgl_mlx.compiler.reorder.groups import groups_of
from sgl_mlx.compiler.reorder.sentences import split


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("Be brief. Be kind.", [1, 1]),
        ("Article:\n\ue000\n\nBe brief.", [2, 1]),
        ("Check these:\n- style\n- length\nBe kind.", [3, 1]),
        ("- style. Twice.\n- length\nBe kind.", [3, 1]),
        ("Use these labels.\ngood, bad\nBe kind.", [1, 2]),
        ("Use the following labels.\ngood, bad.\nBe kind.", [2, 1]),
        ("Name: \ue000\nAge: 7\n\nTown: X", [2, 1]),
        ("Decide. Then explain. Be kind.", [2, 1]),
        ("Decide. Explain it. Be kind.", [2, 1]),
        ("Rules:\nBe brief. Be kind.\n\nUse verse.", [3, 1]),
        ("# Task\nBe brief.\n\nBe kind.\n# Data\n\ue000", [3, 2]),
        ("Be brief.\n---\nBe kind.", [3]),
        ("Follow the rules below. Text: \ue000", [2]),
        ("", []),
    ],
)
def test_sentences_that_belong_together_form_groups(text: str, sizes: list[int]) -> None:
    assert [len(group.members) for group in groups_of(split(text).sentences)] == sizes

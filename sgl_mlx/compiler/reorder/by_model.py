"""A model proposes where instructions may stand; it is not believed, only asked.

Like the paper's mover (arXiv 2312.07104 v1, section 4.3.2), but the model answers with an order of
numbers, so that it cannot change a word, and `check` judges what comes of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sgl_mlx.compiler.reorder.judge import Order
from sgl_mlx.compiler.reorder.sentences import SLOT
from sgl_mlx.core import SamplingParams, Text
from sgl_mlx.errors import SglError
from sgl_mlx.lang.backend import Backend

_PROMPT = """\
A prompt is cut into numbered pieces. <input> stands for text that differs in every run. Give an \
order of all pieces in which as many as possible come before the first <input> and the prompt \
still means the same. Pieces that speak of what was said before them ("this", "above", "then") \
have to stay behind it. What the model goes on from has to stay last. If nothing can move, give \
the order as it is.

Pieces:
1. Text: <input>
2. You are a careful proofreader.
3. Correct spelling and grammar of the text.
4. Keep the layout of this version.
Order: 2 3 1 4

Pieces:
1. Log: <input>
2. Say what caused the failure above.
3. Then say how to repair it.
Order: 1 2 3

Pieces:
1. City: <input>
2. Country: <input>
3. Name three sights that can be reached on foot.
4. Do not mention shops.
5. Sights:
Order: 3 4 1 2 5

Pieces:
{pieces}
Order:"""


@dataclass(frozen=True)
class ByModel:
    """A proposer (`reorder.Proposer`) that asks a backend once for each text.

    An answer that is no order of the pieces, or none at all, proposes nothing.
    """

    backend: Backend

    def __call__(self, text: str, continued: bool) -> str:
        order = Order(text, continued)
        numbers = self._answer(order)
        whole = sorted(numbers) == list(range(1, len(order.groups) + 1))
        return order.render([number - 1 for number in numbers]) if whole else text

    def _answer(self, order: Order) -> list[int]:
        params = SamplingParams(
            max_new_tokens=4 * len(order.groups) + 8, temperature=0.0, stop=("\n",)
        )
        prompt = _PROMPT.format(pieces="\n".join(_pieces(order)))
        try:
            answer = self.backend.submit((Text(prompt),), params).result()[0].text
        except SglError:
            return []
        return [int(n) for n in answer.split()] if re.fullmatch(r"[\d ]+", answer) else []


def _pieces(order: Order) -> list[str]:
    texts = (" ".join(s.text for s in group.sentences) for group in order.groups)
    shown = (" ".join(SLOT.sub("<input>", text).split()) for text in texts)
    return [f"{number}. {text}" for number, text in enumerate(shown, start=1)]

"""The choice methods of `select` by name, as graphs store them."""

from __future__ import annotations

from collections.abc import Mapping

from sgl_mlx.lang import choices
from sgl_mlx.lang.choices import ChoicesSamplingMethod

CHOICES_METHODS: Mapping[str, ChoicesSamplingMethod] = {
    name: getattr(choices, name)
    for name in (
        "token_length_normalized",
        "greedy_token_selection",
        "unconditional_likelihood_normalized",
    )
}

"""Costs of steps with which drafts pay, so that engines draft whatever this machine measures."""

from __future__ import annotations

from sgl_mlx.runtime.speculation.costs import Costs

FREE = Costs(((1, 1.0),), ((1, 1.0),))
"""Steps that all cost the same, so that every draft pays."""
FREE_VERIFYING = Costs(((1, 1e-6), (64, 1.0001e-6)), ((1, 1.0),))
"""Steps that verify drafts and cost nothing beside steps that decode."""
CHEAP = Costs(((1, 1e-6),), ((1, 1e-6),))
"""Steps of a draft model or a prediction head that cost nothing beside the large model's."""

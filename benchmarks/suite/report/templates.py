"""Rendering of the Jinja templates beside this file."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import jinja2

from sgl_mlx.benchmarks.suite.report import formats


def render(name: str, **values: Any) -> str:
    """Render a template as HTML or SVG, with `values` escaped and `formats` available as `f`."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(f=formats, **values)


def _source(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")

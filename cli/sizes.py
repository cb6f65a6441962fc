"""Parser of sizes such as 500MB or 2GB."""

from __future__ import annotations

import re

import click

_UNITS = "KMGT"
_SIZE = re.compile(rf"(\d+(?:\.\d+)?)\s*([{_UNITS}]?)(I?)B?", re.IGNORECASE)


def byte_size(text: str) -> int:
    """Parse 500MB, 2GB or 1.5GiB into bytes; a plain number is bytes.

    Raises:
        BadParameter: the text is not such a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise click.BadParameter(f"{text!r} is not a size; write it as 500MB, 2GB or 1.5GiB")
    number, unit, binary = match.groups()
    power = _UNITS.index(unit.upper()) + 1 if unit else 0
    return int(float(number) * (1024 if binary else 1000) ** power)

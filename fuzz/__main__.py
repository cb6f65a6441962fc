"""`python -m fuzz TARGET --seconds 30`: fuzz one target with atheris, guided by its coverage.

What was found stays in `build/fuzz/corpus/TARGET`, a failure in `build/fuzz/crashes/TARGET`. With
`--once FILE` the target reads one file, so that a fault can be looked at.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

FOUND = Path(__file__).parent.parent / "build" / "fuzz"
LONGEST = 1 << 16
"""Largest input in bytes."""
SLOWEST = 5
"""Seconds that one input may take."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--once", type=Path)
    given = parser.parse_args()

    import sgl_mlx  # noqa: F401  (loads BLAS, before MLX is imported)

    if given.once is not None:
        from fuzz.targets import TARGETS

        TARGETS[given.target](given.once.read_bytes())
        return
    fuzz(given.target, given.seconds)


def fuzz(name: str, seconds: int) -> None:
    """Fuzz a target; atheris ends the process."""
    import atheris

    with atheris.instrument_imports(include=["sgl_mlx", "json", "jinja2", "PIL"]):
        from fuzz.seeds import SEEDS
        from fuzz.targets import TARGETS

    corpus, crashes = FOUND / "corpus" / name, FOUND / "crashes" / name
    for folder in (corpus, crashes):
        folder.mkdir(parents=True, exist_ok=True)
    for seed in SEEDS[name]():
        (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={LONGEST}",
        f"-timeout={SLOWEST}",
        f"-artifact_prefix={crashes}/",
        "-rss_limit_mb=4096",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()

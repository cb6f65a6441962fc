"""Pictures on the command line: the option `--image`, and placing pictures in prompts."""

from __future__ import annotations

from collections.abc import Sequence

import click

from sgl_mlx.core import Image, Part, Prompt, Text
from sgl_mlx.errors import PromptError
from sgl_mlx.lang.pictures import MARK

# Placeholder for a picture while a template renders: a private-use character.
PLACE = "\ue00f"

image_option = click.option(
    "--image",
    "images",
    multiple=True,
    metavar="FILE",
    help="A picture to ask about; may be repeated. The model must have a vision part.",
)


def check_pictures(images: Sequence[str]) -> None:
    """Open every picture, so that an unreadable picture is reported before a model is loaded.

    Raises:
        ImageError: a picture cannot be read.
    """
    if images:
        import warnings

        from PIL.Image import DecompressionBombWarning

        from sgl_mlx.models.vision.image import open_image

        # open_image raises an error with a remedy instead
        warnings.simplefilter("ignore", DecompressionBombWarning)
        for path in images:
            open_image(path)


def showing(images: Sequence[str], text: str) -> str:
    """Return the text with a placeholder for each picture, which `with_pictures` replaces.

    The placeholders replace each `<image>` in the text. If there is none, the placeholders are put
    before the text. Without pictures, the text is returned unchanged.

    Raises:
        PromptError: the text has `<image>`, but not as often as there are pictures.
    """
    said = text.count(MARK) if images else 0
    if not said:
        return f"{PLACE}\n" * len(images) + text
    if said != len(images):
        raise PromptError(
            f"the prompt says {MARK} {said} times, and there are {len(images)} pictures; say it "
            "once for each, or not at all"
        )
    return text.replace(MARK, PLACE)


def with_pictures(rendered: str, images: Sequence[str]) -> Prompt:
    """Return a prompt in which the pictures replace the placeholders in the rendered text.

    Raises:
        PromptError: the number of placeholders differs from the number of pictures.
    """
    if not images:
        return (Text(rendered),)
    first, *others = rendered.split(PLACE)
    if len(others) != len(images):
        raise PromptError(
            f"the model's chat template wrote places for {len(others)} pictures, and {len(images)} "
            "are given"
        )
    parts: list[Part] = [Text(first)]
    for image, text in zip(images, others, strict=True):
        parts += [Image(image), Text(text)]
    return tuple(parts)

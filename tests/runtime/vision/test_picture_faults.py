"""Pictures that are broken, unusual, unwelcome or given up harm nobody else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from sgl_mlx.core import Image, Text, Video
from sgl_mlx.errors import ImageError, LimitError, PromptError, RequestAborted
from sgl_mlx.models.vision.tiled import TiledVision
from sgl_mlx.runtime.engine import Engine
from sgl_mlx.runtime.vision.features import Features
from tests.models.vision.test_image import png_header, saved
from tests.patience import PATIENCE, eventually
from tests.runtime.faults import unharmed
from tests.runtime.footprint import assert_no_growth
from tests.runtime.llava import (
    FEATURES,
    PARAMS,
    Folders,
    Open,
    ask,
    picture,
    reference,
    run,
    stats,
    tokens,
)


def test_a_model_of_text_alone_refuses_pictures_and_goes_on(toy: Engine) -> None:
    with pytest.raises(PromptError, match=r"takes no pictures.*mmproj"):
        run(toy, ask(1))
    assert run(toy, (Text("hello"),))


def test_a_model_without_video_says_so(open_llava: Open, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="no videos"):
        run(open_llava(), (Text("a"), Video(str(tmp_path / "film.gif"), 2), Text("b")))


def sees(folders: Folders) -> Callable[[Engine], None]:
    """Return an assertion that an engine answers a question about a picture."""

    def assert_seen(engine: Engine) -> None:
        right = reference(folders("llava")).answer(ask(3), 8)
        assert tokens(run(engine, ask(3))[0]) == right

    return assert_seen


BROKEN: dict[str, Any] = {
    "'none.png' does not exist": "none.png",
    "damaged or cut short": saved(picture(1), "JPEG")[:900],
    "is too large.*limit max_image_pixels is 64,000,000": png_header(40_000, 40_000),
    "9,000 pixels.*limit max_image_pixels is 64,000,000": png_header(9_000, 9_000),
    "is empty: 0 x 0": Pillow.new("RGB", (0, 0)),
    "is no picture": b"",
}


@pytest.mark.parametrize("complaint", BROKEN)
def test_a_broken_picture_harms_nobody_else(
    open_llava: Open, llava_folder: Folders, complaint: str
) -> None:
    engine, plain = open_llava(), reference(llava_folder("llava"))
    with unharmed(engine, sees(llava_folder)):
        encoded = stats(engine)["encoded_images"]
        before = engine.submit(ask(1), PARAMS)
        with pytest.raises((ImageError, LimitError), match=complaint):
            engine.submit((*ask(1), Image(BROKEN[complaint]), Text("b")), PARAMS).result(PATIENCE)
        after = engine.submit(ask(2), PARAMS)
        assert tokens(before.result()[0]) == plain.answer(ask(1), 8)
        assert tokens(after.result()[0]) == plain.answer(ask(2), 8)
        assert stats(engine)["encoded_images"] == encoded + 2


def test_memory_comes_back_that_a_broken_picture_had_taken(
    open_llava: Open, llava_folder: Folders
) -> None:
    cut_short = saved(picture(1, 3000, 4000), "JPEG")[:-1000]
    engine = open_llava()

    def fault() -> None:
        with pytest.raises(ImageError, match="damaged or cut short"):
            run(engine, (Text("a"), Image(cut_short), Text("b")))

    with unharmed(engine, sees(llava_folder)):
        assert_no_growth(fault)


def unusual() -> dict[str, tuple[bytes, Pillow.Image]]:
    """Files that need more than reading, and the plain picture that each shows."""
    grey = np.arange(2400, dtype=np.uint16).reshape(40, 60) * 27
    cmyk, rotated = picture(1).convert("CMYK"), Pillow.Exif()
    rotated[0x0112], turned = 6, Pillow.Transpose.ROTATE_270
    first, *others = (picture(n).quantize() for n in range(3))
    film = saved(first, "GIF", save_all=True, append_images=others)
    return {
        "CMYK": (saved(cmyk, "TIFF"), cmyk.convert("RGB")),
        "16 bits": (saved(Pillow.fromarray(grey)), as_rgb(grey >> 8)),
        "animated": (film, first.convert("RGB")),
        "rotated": (saved(picture(1), exif=rotated), picture(1).transpose(turned)),
    }


def as_rgb(values: Any) -> Pillow.Image:
    return Pillow.fromarray(values.astype(np.uint8)).convert("RGB")


@pytest.mark.parametrize("kind", unusual())
def test_an_unusual_file_is_the_picture_it_shows(open_llava: Open, kind: str) -> None:
    engine = open_llava()
    file, shown = unusual()[kind]
    plain, found = (run(engine, (Text("a"), Image(x), Text("b")))[0] for x in (shown, file))
    assert tokens(found) == tokens(plain)
    assert found.cached_tokens == found.prompt_tokens - 1
    assert stats(engine)["encoded_images"] == 1


def test_a_request_aborted_inside_a_picture_leaves_the_others_and_all_slots(
    open_llava: Open, llava_folder: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_llava(chunked_prefill_size=5)
    place, submitted, shown = Features.place, Event(), []

    def place_and_abort(self: Features, rows: Any, embeddings: Any, lookup: Any) -> Any:
        submitted.wait()
        shown.append(sum(part.length for row in rows for part in row.pictures))
        doomed.cancel()
        return place(self, rows, embeddings, lookup)

    with unharmed(engine, sees(llava_folder)), monkeypatch.context() as patch:
        patch.setattr(Features, "place", place_and_abort)
        doomed = engine.submit(ask(1), PARAMS.override(max_new_tokens=300))
        good = engine.submit(ask(2), PARAMS)
        submitted.set()
        assert tokens(good.result()[0]) == reference(llava_folder("llava")).answer(ask(2), 8)
        assert doomed.cancelled()
        assert 0 < shown[0] < FEATURES
        assert sum(shown) < 2 * FEATURES
        eventually(lambda: not (stats(engine)["running"] or stats(engine)["waiting"]), "it ends")
        after = stats(engine)
        assert after["free_slots"] + after["cached_slots"] == 1000


def test_a_step_that_fails_is_an_error_of_its_requests(
    open_llava: Open, llava_folder: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_llava()

    def fail(self: TiledVision, images: object) -> None:
        raise MemoryError("no room")

    with unharmed(engine, sees(llava_folder)):
        with monkeypatch.context() as patched:
            patched.setattr(TiledVision, "encode", fail)
            with pytest.raises(RequestAborted, match="no room"):
                run(engine, ask(1))
        assert run(engine, ask(1))

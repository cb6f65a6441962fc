"""Whatever is handed over becomes upright RGB, or a clear error; size is checked before memory."""

from __future__ import annotations

import base64
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from sgl_mlx.errors import ImageError, LimitError
from sgl_mlx.limits import Limits
from sgl_mlx.models.vision.image import Source, open_frames, open_image

FORMATS = ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000"]


def picture(width: int = 24, height: int = 16) -> Image.Image:
    draw = np.random.default_rng(3)
    return Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))


def saved(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    stream = BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def same(found: Image.Image, expected: Image.Image) -> bool:
    return found.mode == "RGB" and np.array_equal(np.asarray(found), np.asarray(expected))


def test_path_text_bytes_data_url_and_open_picture_are_the_same(tmp_path: Path) -> None:
    raw, path = saved(picture()), tmp_path / "a picture: 1.png"
    path.write_bytes(raw)
    url = f"data:image/png;base64,{base64.b64encode(raw).decode()}"
    sources: list[Source] = [path, str(path), raw, url, picture()]
    sources += [path.as_uri(), f"FILE://{path}", bytearray(raw), f"  {url}\n"]
    assert all(same(open_image(source), picture()) for source in sources)


def test_a_data_url_may_be_percent_encoded_or_broken_into_lines() -> None:
    raw = saved(picture())
    escaped = "data:image/png," + "".join(f"%{byte:02x}" for byte in raw)
    lines = "data:image/png;base64," + base64.encodebytes(raw).decode()
    assert same(open_image(escaped), picture())
    assert same(open_image(lines), picture())


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,@@@@", "no valid base64"),
        ("data:image/png;base64,abc", "no valid base64"),
        ("data:image/png;base64,", "no picture in a format this reads"),
        ("data:text/plain,hello", "no picture in a format this reads"),
    ],
)
def test_a_malformed_data_url_is_refused(url: str, fault: str) -> None:
    with pytest.raises(ImageError, match=fault):
        open_image(url)


@pytest.mark.parametrize("url", ["http://host/a.png", "https://host/a.png", "HTTPS://host/a.png"])
def test_a_web_address_is_refused_before_any_network(url: str) -> None:
    with pytest.raises(ImageError, match="not fetched from the network"):
        open_image(url)


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"'.*none\.png' does not exist"):
        open_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="is a folder"):
        open_image(str(tmp_path))
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError, match=r"empty\.png' is an empty file"):
        open_image(tmp_path / "empty.png")
    with pytest.raises(ImageError, match="is an empty text"):
        open_image("")


@pytest.mark.parametrize("text", [base64.b64encode(bytes(9000)).decode(), "~nobody-here/a.png"])
def test_a_text_that_is_no_path_is_refused_in_few_words(text: str) -> None:
    with pytest.raises(ImageError, match=r"is no path|does not exist") as caught:
        open_image(text)
    assert len(str(caught.value)) < 200


def test_an_object_that_is_no_source_is_refused() -> None:
    with pytest.raises(ImageError, match="not int"):
        open_image(7)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match=r"not BytesIO; its read\(\) gives bytes"):
        open_image(BytesIO(b""))  # type: ignore[arg-type]


def test_a_file_that_is_no_picture_is_refused_with_the_formats_read(tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("no picture")
    with pytest.raises(ImageError, match=r"notes.png' is no picture .*: JPEG, PNG"):
        open_image(path)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("keep", [0.9, 0.5, 0.1])
def test_a_file_cut_short_is_refused(format: str, keep: float) -> None:
    raw = saved(picture(64, 64), format)
    with pytest.raises(ImageError):
        open_image(raw[: int(len(raw) * keep)])


def test_a_damaged_file_is_a_picture_or_an_error() -> None:
    draw = np.random.default_rng(5)
    for format in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"):
        raw = np.frombuffer(saved(picture(), format), np.uint8)
        for _ in range(40):
            broken = raw.copy()
            broken[draw.integers(0, len(raw), 4)] = draw.integers(0, 256, 4)
            try:
                assert open_image(broken.tobytes()).mode == "RGB"
            except (ImageError, LimitError):
                continue


@pytest.mark.parametrize("side", [8_001, 12_000, 40_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(
    side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *a: pytest.fail("decoded"))
    with pytest.raises(LimitError, match="the limit max_image_pixels is 64,000,000"):
        open_image(png_header(side, side))


@pytest.mark.parametrize("format", FORMATS)
def test_in_every_format_the_size_is_known_before_anything_is_decoded(
    format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = saved(picture(), format)
    with Image.open(BytesIO(raw)) as opened:
        monkeypatch.setattr(type(opened), "load", lambda *a: pytest.fail("decoded"))
    with pytest.raises(LimitError, match=r"24 x 16 pixels, .* max_image_pixels is 100"):
        open_image(raw, Limits(max_image_pixels=100))


@pytest.mark.parametrize("disposal", [0, 2, 3])
@pytest.mark.parametrize("frame", [0, 1])
def test_a_frame_that_outgrows_its_gif_is_refused_before_there_is_room_for_it(
    frame: int, disposal: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [Image.new("L", (8, 8), grey) for grey in (0, 255)]
    options = {"save_all": True, "append_images": frames[1:], "disposal": disposal}
    small, large = (b"," + struct.pack("<4H", 0, 0, side, side) for side in (8, 9000))
    pieces = saved(frames[0], "GIF", duration=100, **options).split(small)
    assert len(pieces) == 3
    opened = open_frames(
        pieces[0] + (large, small)[frame] + pieces[1] + (small, large)[frame] + pieces[2]
    )
    assert [next(opened).size for _ in range(frame)] == [(8, 8)] * frame
    make = Image.core.fill
    monkeypatch.setattr(Image.core, "fill", lambda mode, size, *a: make(mode, small_only(size), *a))
    with pytest.raises(LimitError, match="9,000 x 9,000 pixels"):
        next(opened)


def test_so_is_a_later_page() -> None:
    raw = saved(picture(8, 8), "TIFF", save_all=True, append_images=[picture(24, 16)])
    opened = open_frames(raw, Limits(max_image_pixels=100))
    assert next(opened).size == (8, 8)
    with pytest.raises(LimitError, match=r"24 x 16 pixels, .* max_image_pixels is 100"):
        next(opened)


def small_only(size: tuple[int, int]) -> tuple[int, int]:
    assert size[0] * size[1] <= Limits().max_image_pixels, "room was made"
    return size


def test_a_picture_of_too_many_bytes_is_refused_unread(tmp_path: Path) -> None:
    raw, path = saved(picture()), tmp_path / "a.png"
    path.write_bytes(raw)
    url = f"data:image/png;base64,{base64.b64encode(raw).decode()}"
    limits = Limits(max_image_bytes=len(raw) - 1)
    for source in (raw, path, url):
        with pytest.raises(LimitError, match=r"has [\d,]+ bytes: the limit max_image_bytes is"):
            open_image(source, limits)
        assert same(open_image(source, Limits(max_image_bytes=len(raw))), picture())


def test_a_picture_without_pixels_is_refused() -> None:
    with pytest.raises(ImageError, match="0 x 4"):
        open_image(Image.new("RGB", (0, 4)))
    with pytest.raises(ImageError):
        open_image(png_header(0, 0))


def test_cmyk_becomes_rgb() -> None:
    raw = saved(Image.new("CMYK", (9, 9), (0, 255, 255, 0)), "JPEG")
    red = np.asarray(open_image(raw))[4, 4]
    assert red[0] > 200
    assert max(red[1:]) < 50


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_greys_of_16_bits_keep_their_brightness(format: str) -> None:
    values = np.arange(256, dtype=np.uint16).reshape(16, 16) << 8
    found = np.asarray(open_image(saved(Image.fromarray(values), format)))
    assert np.array_equal(found[..., 0], values >> 8)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
@pytest.mark.parametrize("through", ["TIFF", None])
def test_greys_of_32_bits_that_were_8_are_read_as_such(kind: type, through: str | None) -> None:
    values = np.arange(256, dtype=kind).reshape(16, 16)
    wide = Image.fromarray(values)
    found = np.asarray(open_image(saved(wide, through) if through else wide))
    assert np.array_equal(found[..., 0], values)


def test_whole_greys_of_32_bits_that_were_16_are_read_as_such() -> None:
    values = np.arange(0, 65536, 256, dtype=np.int32).reshape(16, 16)
    assert np.array_equal(np.asarray(open_image(Image.fromarray(values)))[..., 0], values >> 8)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.full((4, 4), 0.5, np.float32), "floating-point numbers from 0.5 to 0.5"),
        (np.full((4, 4), 300.5, np.float32), "floating-point numbers from 300.5"),
        (np.full((4, 4), np.nan, np.float32), "floating-point numbers from nan"),
        (np.full((4, 4), 70_000, np.int32), "whole numbers from 70000 to 70000"),
        (np.full((4, 4), -1, np.int32), "whole numbers from -1 to -1"),
    ],
)
def test_greys_of_which_none_is_white_are_refused(values: np.ndarray, told: str) -> None:
    with pytest.raises(ImageError, match=told):
        open_image(Image.fromarray(values))


def test_an_array_is_refused_with_the_way_to_a_picture() -> None:
    with pytest.raises(ImageError, match=r"not ndarray; PIL.Image.fromarray\(array\) makes one"):
        open_image(np.zeros((4, 4), np.uint8))  # type: ignore[arg-type]


def test_transparency_shows_white_behind() -> None:
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    assert open_image(saved(half)).getpixel((1, 1)) == (255, 127, 127)
    grey = Image.new("LA", (4, 4), (0, 0))
    assert open_image(saved(grey)).getpixel((1, 1)) == (255, 255, 255)


def test_a_palette_with_a_transparent_colour_shows_white_there() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 0)
    found = open_image(saved(image, transparency=0))
    assert found.getpixel((0, 0)) == (255, 255, 255)
    assert found.getpixel((3, 3)) == (0, 0, 255)


def test_of_an_animation_the_first_frame_is_taken_and_all_can_be_had() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    raw = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(raw).getpixel((2, 2)) == (255, 0, 0)
    colours = [frame.getpixel((2, 2)) for frame in open_frames(raw)]
    assert colours == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_rotation_that_a_camera_notes_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = open_image(saved(picture(24, 16), exif=exif))
    assert found.size == ((24, 16) if orientation < 5 else (16, 24))
    turned = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270}
    if orientation in turned:
        assert same(found, picture(24, 16).transpose(turned[orientation]))


def test_an_open_picture_is_left_as_it_was() -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    open_image(image)
    assert image.mode == "RGBA"
    assert image.getpixel((1, 1)) == (255, 0, 0, 128)

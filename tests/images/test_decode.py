"""Which decoder runs, what it refuses, and that limits hold before anything is decoded."""

from __future__ import annotations

import io
import random
import struct
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from blip_fast.images import Decoded, ImageError, ImageOptions, Status, decode, read_picture
from blip_fast.images.quiet import pillow_is_quiet


def encoded(
    kind: str, mode: str = "RGB", size: tuple[int, int] = (40, 30), **save: object
) -> bytes:
    y, x = np.mgrid[: size[1], : size[0]]
    image = Image.fromarray(np.stack([x * 5, y * 7, x + y], axis=-1).astype(np.uint8))
    file = io.BytesIO()
    image.convert(mode).save(file, kind, **save)
    return file.getvalue()


def refusal(data: bytes, **settings: object) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(data, ImageOptions(**settings))
    return caught.value


def as_array(decoded: Decoded) -> np.ndarray:
    if isinstance(decoded.pixels, torch.Tensor):
        return decoded.pixels.permute(1, 2, 0).numpy().astype(int)
    return np.asarray(decoded.pixels.convert("RGB")).astype(int)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_auto_takes_simplejpeg_for_plain_jpeg(mode: str) -> None:
    data = encoded("JPEG", mode)
    fast, slow = (decode(data, ImageOptions(decoder=name)) for name in ("auto", "pillow"))
    assert isinstance(fast.pixels, torch.Tensor) and isinstance(slow.pixels, Image.Image)
    assert fast.size == slow.size == (40, 30)
    assert np.abs(as_array(fast) - as_array(slow)).max() <= 1
    assert np.array_equal(
        as_array(decode(data, ImageOptions(decoder="simplejpeg"))), as_array(fast)
    )


def test_auto_takes_pillow_elsewhere() -> None:
    for data in (encoded("JPEG", "CMYK"), encoded("PNG"), encoded("WEBP"), encoded("GIF")):
        assert isinstance(decode(data, ImageOptions()).pixels, Image.Image)


def test_an_explicit_decoder_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for data, kind in ((encoded("PNG"), "PNG"), (encoded("JPEG", "CMYK"), "CMYK")):
        error = refusal(data, decoder="simplejpeg")
        assert error.status is Status.FAILED_TO_DECODE and kind in str(error)

    def refuse(*_: object) -> None:
        raise ValueError("refused by the test")

    monkeypatch.setattr(simplejpeg, "decode_jpeg", refuse)
    assert "refused by the test" in str(refusal(encoded("JPEG"), decoder="simplejpeg"))
    assert isinstance(decode(encoded("JPEG"), ImageOptions()).pixels, Image.Image)
    assert isinstance(decode(encoded("JPEG"), ImageOptions(decoder="pillow")).pixels, Image.Image)


def test_content_decides_and_not_the_name(tmp_path: Path) -> None:
    (tmp_path / "really_png.jpg").write_bytes(encoded("PNG"))
    (tmp_path / "really_jpeg.PNG").write_bytes(encoded("JPEG"))
    (tmp_path / "text.jpg").write_text("no picture, but words\n" * 20)
    assert read_picture(tmp_path / "really_png.jpg").status is Status.SUCCESS
    assert read_picture(tmp_path / "really_jpeg.PNG").status is Status.SUCCESS
    assert read_picture(tmp_path / "text.jpg").status is Status.FAILED_TO_DECODE


def test_kinds_that_start_programs_are_unknown() -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n" + b"\n" * 99
    assert refusal(postscript).status is Status.FAILED_TO_DECODE


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("decoder", ["auto", "pillow"])
def test_a_file_cut_short_is_refused(kind: str, decoder: str) -> None:
    data = encoded(kind, size=(200, 150))
    assert decode(data, ImageOptions(decoder=decoder)).size == (200, 150)
    for share in (0.02, 0.3, 0.9):
        error = refusal(data[: int(len(data) * share)], decoder=decoder)
        assert error.status is Status.FAILED_TO_DECODE


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "ICO"])
def test_damaged_bytes_are_refused_or_read(kind: str) -> None:
    """Whatever a plugin raises on random damage, an ImageError comes out, or a picture."""
    chance, data = random.Random(0), encoded(kind, size=(64, 64))
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(chance.choice((1, 4, 30))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        picture = read_picture(bytes(damaged), ImageOptions(size=16, max_pixels=10**6))
        assert (picture.pixels is None) == (picture.status is not Status.SUCCESS)
        assert (picture.error == "") == (picture.status is Status.SUCCESS)


def test_limit_on_pixels_comes_before_decoding(
    monkeypatch: pytest.MonkeyPatch, blank_png: Callable[[int, int], bytes]
) -> None:
    jpeg, png = encoded("JPEG"), blank_png(40, 30)
    assert decode(jpeg, ImageOptions(max_pixels=1200)).size == (40, 30)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(simplejpeg, "decode_jpeg", never)
    monkeypatch.setattr(Image.Image, "load", never)
    for data, limit in ((jpeg, "max_jpeg_pixels"), (png, "max_pixels")):
        error = refusal(data, max_pixels=1199, max_jpeg_pixels=1199)
        assert error.status is Status.TOO_LARGE
        assert "1200" in str(error) and f"the limit is {limit} 1199" in str(error)


def test_pixels_of_greedy_kinds_count_twice() -> None:
    for data in (encoded("WEBP"), encoded("AVIF"), encoded("JPEG", "CMYK")):
        assert decode(data, ImageOptions(max_pixels=2400)).size == (40, 30)
        error = refusal(data, max_pixels=2399, max_jpeg_pixels=2399)
        assert error.status is Status.TOO_LARGE and "count twice" in str(error)


def test_limit_on_sides(blank_png: Callable[[int, int], bytes]) -> None:
    error = refusal(blank_png(65_536, 1))
    assert error.status is Status.TOO_LARGE and "65535" in str(error)


@pytest.mark.filterwarnings("error")
def test_a_limit_above_pillows_warning(blank_png: Callable[[int, int], bytes]) -> None:
    """Between Pillow's warning and its error our limit alone decides, and nothing is printed."""
    data = blank_png(30_000, 3_100)[:100]  # the header; the pixels are cut off
    assert refusal(data).status is Status.TOO_LARGE
    assert refusal(data, max_pixels=2 * 10**8).status is Status.FAILED_TO_DECODE


def test_an_icon_larger_than_it_says() -> None:
    icon = bytearray(encoded("ICO", size=(64, 64), sizes=[(64, 64)]))
    icon[6:8] = bytes([8, 8])  # width and height in its list
    assert refusal(bytes(icon), max_pixels=4000).status is Status.TOO_LARGE


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "lime")]
    for kind in ("GIF", "WEBP", "PNG"):
        file = io.BytesIO()
        save = {"lossless": True} if kind == "WEBP" else {}
        frames[0].save(file, kind, save_all=True, append_images=frames[1:], **save)
        assert as_array(decode(file.getvalue(), ImageOptions()))[0, 0].tolist() == [255, 0, 0]


def exif(orientation: int | bytes, kind: int = 3) -> bytes:
    """One TIFF directory with one entry, the orientation; `kind` is the TIFF type of its value."""
    value = struct.pack("<I", orientation) if isinstance(orientation, int) else orientation
    entry = struct.pack("<HHI", 0x112, kind, 1) + value
    return b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + bytes(4)


@pytest.mark.parametrize("decoder", ["simplejpeg", "pillow"])
def test_orientation(decoder: str) -> None:
    for orientation in range(1, 9):
        data = encoded("JPEG", exif=exif(orientation))
        assert decode(data, ImageOptions(decoder=decoder)).orientation == orientation
        ignored = decode(data, ImageOptions(decoder=decoder, exif_orientation=False))
        assert ignored.orientation == 1 and ignored.size == (40, 30)


@pytest.mark.parametrize(
    "bad",
    [
        exif(0),
        exif(9),
        exif(65535),
        exif(6, 7),
        exif(b"six\0", 2),
        exif(6)[:20],
        b"Exif\0\0garbage",
    ],
)
@pytest.mark.parametrize("decoder", ["simplejpeg", "pillow"])
def test_bad_exif_costs_nothing(bad: bytes, decoder: str) -> None:
    found = decode(encoded("JPEG", exif=bad), ImageOptions(decoder=decoder))
    assert (found.orientation, found.size) == (1, (40, 30))


def test_a_tiff_is_turned_once() -> None:
    data = encoded("TIFF", tiffinfo={274: 6})
    assert decode(data, ImageOptions()).size == (30, 40)


def test_pillows_globals_stay_as_they_are(shared_data: Path) -> None:
    before = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    for path in (shared_data / "image_faults").glob("*bomb*"):
        read_picture(path)
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before


def test_quiet_is_shared_by_threads() -> None:
    before = list(warnings.filters)
    inside, leave = threading.Barrier(2), threading.Event()

    def stay() -> None:
        with pillow_is_quiet():
            inside.wait()
            leave.wait()

    other = threading.Thread(target=stay)
    other.start()
    inside.wait()
    with pillow_is_quiet():
        pass
    assert len(warnings.filters) == len(before) + 1  # the other thread is still in
    leave.set()
    other.join()
    assert list(warnings.filters) == before

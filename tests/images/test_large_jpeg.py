"""JPEGs over the limit of pixels come out smaller; what would take the memory all the same does
not."""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from blip_fast.images import Decoded, ImageError, ImageOptions, Status, decode, read_picture
from blip_fast.images.augment import crop

WIDE = (101, 77)


def jpeg(size: tuple[int, int] = WIDE, mode: str = "RGB", **save: object) -> bytes:
    y, x = np.mgrid[: size[1], : size[0]]
    image = Image.fromarray(np.stack([x * 2, y * 3, x + y], axis=-1).astype(np.uint8))
    file = io.BytesIO()
    image.convert(mode).save(file, "JPEG", **save)
    return file.getvalue()


def resized_header(data: bytes, width: int, height: int) -> bytes:
    """A JPEG that says it is larger than it is."""
    place = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    return data[: place + 5] + struct.pack(">HH", height, width) + data[place + 9 :]


def as_array(decoded: Decoded) -> np.ndarray:
    if isinstance(decoded.pixels, Image.Image):
        return np.asarray(decoded.pixels.convert("RGB")).astype(int)
    return decoded.pixels.permute(1, 2, 0).numpy().astype(int)


def refusal(data: bytes, options: ImageOptions) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, options)
    assert caught.value.status is Status.TOO_LARGE
    return str(caught.value)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(("part", "size"), [(2, (51, 39)), (4, (26, 20)), (8, (13, 10))])
def test_it_is_decoded_at_the_largest_part_within_the_limit(
    part: int, size: tuple[int, int], progressive: bool, mode: str
) -> None:
    data = jpeg(mode=mode, progressive=progressive)
    twice = 2 if mode == "CMYK" else 1
    options = ImageOptions(max_pixels=size[0] * size[1] * twice)
    found = decode(data, options)
    by_pillow = decode(data, replace(options, decoder="pillow"))
    assert found.decoder == ("pillow" if mode == "CMYK" else "simplejpeg")
    assert found.stored_size == by_pillow.stored_size == size
    assert found.size == size and found.file_size == by_pillow.file_size == WIDE
    assert np.abs(as_array(found) - as_array(by_pillow)).max() <= 1
    with Image.open(io.BytesIO(data)) as image:
        reduced = np.asarray(image.convert("RGB").reduce(part)).astype(int)
    assert np.abs(as_array(found) - reduced)[:-1, :-1].mean() < 1


def test_within_the_limit_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    data, calls = jpeg(), []
    inner = simplejpeg.decode_jpeg

    def noted(*args: object, **settings: object) -> np.ndarray:
        calls.append((len(args), settings))
        return inner(*args, **settings)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", noted)
    whole = decode(data, ImageOptions(max_pixels=101 * 77))
    assert whole.stored_size == WIDE and whole.full_size is None
    assert calls == [(1, {})]


def test_it_is_set_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = jpeg(exif=exif)
    picture = read_picture(data, ImageOptions(size=16, max_pixels=51 * 39))
    assert (picture.width, picture.height) == (77, 101)
    whole = read_picture(data, ImageOptions(size=16))
    assert picture.pixels is not None and whole.pixels is not None
    assert (picture.pixels.int() - whole.pixels.int()).abs().max() <= 6


def test_parts_are_cut_out_of_what_is_there() -> None:
    """A training crop is drawn in the pixels that were decoded, not in those of the file."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = decode(jpeg(exif=exif), ImageOptions(max_pixels=51 * 39))
    assert crop(image, (0, 0, *image.size)).stored_size == (51, 39)


def test_its_own_limit_is_named() -> None:
    small = ImageOptions(max_pixels=2000, max_jpeg_pixels=7776)
    assert "101 x 77 are 7777 pixels; the limit is max_jpeg_pixels 7776" in refusal(jpeg(), small)
    assert decode(jpeg(), replace(small, max_jpeg_pixels=7777)).file_size == WIDE
    assert decode(jpeg(), replace(small, max_pixels=7777)).stored_size == WIDE
    assert "max_pixels 100, even at an eighth" in refusal(jpeg(), ImageOptions(max_pixels=100))
    bomb = resized_header(jpeg(), 65_500, 65_500)  # beyond what Pillow itself lets pass
    assert "the limit is max_jpeg_pixels 268435456" in refusal(bomb, ImageOptions())
    assert refusal(bomb, ImageOptions(decoder="pillow")) == refusal(bomb, ImageOptions())


def test_several_scans_are_held_whole_and_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a file takes its memory however small it is to come out."""

    def begun(*_: object, **__: object) -> None:
        raise RuntimeError("begun")

    monkeypatch.setattr(simplejpeg, "decode_jpeg", begun)
    within = {"4:2:0": (13_000, 13_000), "4:4:4": (9_400, 9_400)}
    beyond = {"4:2:0": (13_400, 13_400), "4:4:4": (9_500, 9_500)}
    for sampling, size in beyond.items():
        data = jpeg(progressive=True, subsampling=sampling)
        assert "in several scans" in refusal(resized_header(data, *size), ImageOptions())
        plain = resized_header(jpeg(subsampling=sampling), *size)
        for other in (plain, resized_header(data, *within[sampling])):
            assert "begun" in read_picture(other, ImageOptions()).error


def test_a_scan_for_each_component_counts_as_several() -> None:
    data = jpeg()
    start = data.find(b"\xff\xda")
    assert data[start + 4] == 3  # components of the only scan
    alone = resized_header(data[: start + 4] + b"\x01" + data[start + 5 :], 14_000, 14_000)
    assert "in several scans" in refusal(alone, ImageOptions())


@pytest.mark.parametrize("share", [0.3, 0.9])
@pytest.mark.parametrize("decoder", ["auto", "pillow"])
def test_one_cut_short_is_refused(share: float, decoder: str) -> None:
    data = jpeg((200, 150))
    options = ImageOptions(size=16, max_pixels=10_000, decoder=decoder)
    assert read_picture(data, options).status is Status.SUCCESS
    cut = read_picture(data[: int(len(data) * share)], options)
    assert cut.status is Status.FAILED_TO_DECODE


def test_one_over_the_memory_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError("cannot allocate 9 bytes")

    monkeypatch.setattr(simplejpeg, "decode_jpeg", full)
    picture = read_picture(jpeg(), ImageOptions())
    assert picture.status is Status.TOO_LARGE
    assert picture.error == "MemoryError: cannot allocate 9 bytes"


def test_other_kinds_stay_refused(tmp_path: Path) -> None:
    for kind in ("PNG", "BMP", "TIFF"):
        file = io.BytesIO()
        Image.new("RGB", WIDE).save(file, kind)
        options = ImageOptions(max_pixels=7776)
        assert "the limit is max_pixels 7776" in refusal(file.getvalue(), options)

"""DALI and nvImageCodec themselves, on the CPU, and on a GPU where there is one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from blip_fast.images import (
    ON_DEVICE,
    ImageOptions,
    Picture,
    Status,
    on_device,
    read_picture,
    read_pictures,
)

SIZE = 64

# nvImageCodec's pixels are resized by our own filter. DALI's goes on with the last row of pixels
# beyond the edge of a picture, where the reference weighs the others more: the two outermost rows
# of pixels differ by up to a dozen grey levels, and nothing else by more than the two of torch.
MOST_INSIDE, MOST_AT_EDGES, MEAN = 2, {"dali": 16, "nvimgcodec": 2}, 0.02


def devices() -> list[str]:
    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=sorted(ON_DEVICE))
def decoder(request: pytest.FixtureRequest) -> str:
    reason = f"needs the extra blip-fast[{request.param}]: `make dali` installs it"
    pytest.importorskip(ON_DEVICE[request.param], reason=reason)
    return request.param


@pytest.fixture(params=devices())
def options(request: pytest.FixtureRequest, decoder: str) -> Iterator[ImageOptions]:
    yield ImageOptions(size=SIZE, decoder=decoder, device=request.param)
    on_device._decoder.cache_clear()


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Ten smooth pictures with an edge in them, of many shapes; the last is turned."""
    folder, chance = tmp_path_factory.mktemp("jpegs"), np.random.default_rng(0)
    paths = []
    for number in range(10):
        width, height = chance.integers(50, 400, 2)
        y, x = np.mgrid[:height, :width]
        waves = np.stack([x / width, y / height, np.sin(x / 30 + number) / 2 + 0.5], axis=-1)
        waves[height // 2 :, : width // 3] = chance.random(3)
        exif = Image.Exif()
        if number == 9:
            exif[0x112] = 6
        image = Image.fromarray((waves * 255).astype(np.uint8))
        paths.append(folder / f"{number}.jpg")
        image.save(paths[-1], quality=90, exif=exif, subsampling=number % 3)
    return paths


def assert_like_reference(pictures: list[Picture], decoder: str) -> None:
    for picture in pictures:
        reference = read_picture(picture.name, ImageOptions(size=SIZE, decoder="pillow"))
        assert (picture.status, picture.width, picture.height, picture.error) == (
            reference.status, reference.width, reference.height, reference.error,
        ), picture.name  # fmt: skip
        if picture.pixels is None or reference.pixels is None:
            assert picture.pixels is reference.pixels
            continue
        assert picture.pixels.dtype == torch.uint8 and picture.pixels.is_contiguous()
        error = (picture.pixels.cpu().int() - reference.pixels.int()).abs().float()
        edge = math.ceil(2 * max(1, SIZE / min(picture.width, picture.height)))
        inside = error[:, edge:-edge, edge:-edge]
        if inside.numel():  # not of pictures of a few pixels, which are all edge
            assert inside.max() <= MOST_INSIDE and inside.mean() <= MEAN, picture.name
        assert error.max() <= MOST_AT_EDGES[decoder], picture.name


def test_like_the_reference(options: ImageOptions, jpegs: list[Path]) -> None:
    pictures = list(read_pictures(jpegs, options))
    assert {picture.decoder for picture in pictures} == {options.decoder}
    assert {str(p.pixels.device.type) for p in pictures if p.pixels is not None} == {
        torch.device(options.device).type
    }
    assert_like_reference(pictures, options.decoder)


def test_batches_and_neighbours_change_nothing(options: ImageOptions, jpegs: list[Path]) -> None:
    together = list(read_pictures(jpegs * 5, options))
    for place, picture in enumerate(together):
        alone = read_picture(jpegs[place % len(jpegs)], options)
        assert picture.pixels is not None and alone.pixels is not None
        assert torch.equal(picture.pixels, alone.pixels)


def test_memory_of_ones_own(options: ImageOptions, jpegs: list[Path]) -> None:
    first = read_picture(jpegs[0], options).pixels
    assert first is not None
    kept = first.clone()
    list(read_pictures(jpegs[1:], options))
    assert torch.equal(first, kept)


def damaged(data: bytes) -> dict[str, bytes]:
    """Files that no header check can tell from good ones."""
    scan = data.rindex(b"\xff\xda")
    return {
        "cut, and an end put to it": data[: len(data) // 2] + b"\xff\xd9",
        "no tables": data.replace(b"\xff\xdb", b"\xff\xec"),  # of quantisation; a comment now
        "no data": data[: scan + 14] + b"\xff\xd9",
    }


@pytest.mark.parametrize("place", [0, 3, 9])
def test_a_damaged_file_costs_its_batch_nothing(
    options: ImageOptions, jpegs: list[Path], place: int, tmp_path: Path
) -> None:
    good = {path: read_picture(path, options).pixels for path in jpegs}
    for name, data in damaged(jpegs[4].read_bytes()).items():
        bad = tmp_path / f"{name}.jpg"
        bad.write_bytes(data)
        paths = [*jpegs[:place], bad, *jpegs[place:]]
        pictures = list(read_pictures(paths, options))
        assert [p.name for p in pictures] == [str(path) for path in paths]
        for path, picture in zip(paths, pictures, strict=True):
            if path != bad:
                assert picture.decoder == options.decoder
                assert picture.pixels is not None and torch.equal(picture.pixels, good[path])
        # What the device refuses Pillow decides; what it reads, it reads as Pillow does.
        reference = read_picture(bad, ImageOptions(size=SIZE, decoder="pillow"))
        if pictures[place].decoder != options.decoder:
            assert (pictures[place].status, pictures[place].error) == (
                reference.status, reference.error,
            ), name  # fmt: skip


def test_the_bad_are_found_among_many(options: ImageOptions, jpegs: list[Path]) -> None:
    """Half of a batch is refused, and still every good one is the device's."""
    bad = damaged(jpegs[4].read_bytes())["no tables"]
    sources = [bad if n % 2 else jpegs[n % 10].read_bytes() for n in range(20)]
    pictures = list(read_pictures(sources, options))
    assert [p.decoder for p in pictures[::2]] == [options.decoder] * 10
    assert [p.status for p in pictures[1::2]] == [Status.FAILED_TO_DECODE] * 10


def test_a_single_bad_file(options: ImageOptions, jpegs: list[Path]) -> None:
    bad = damaged(jpegs[4].read_bytes())["no tables"]
    assert read_picture(bad, options).status is Status.FAILED_TO_DECODE
    assert read_picture(jpegs[0], options).decoder == options.decoder


def test_sizes_from_one_pixel_to_many(options: ImageOptions) -> None:
    for width, height in ((1, 1), (1, 500), (500, 1), (3000, 40)):
        level = np.full((height, width, 3), 77, np.uint8)
        picture = read_picture(simplejpeg.encode_jpeg(level, quality=95), options)
        assert (picture.decoder, picture.width, picture.height) == (options.decoder, width, height)
        assert picture.pixels is not None and (picture.pixels.int() - 77).abs().max() <= 1


def test_hostile_files(options: ImageOptions, shared_data: Path) -> None:
    paths = sorted((shared_data / "image_faults").iterdir())
    pictures = list(read_pictures(paths, options))
    assert_like_reference(pictures, options.decoder)
    read_by = {Path(p.name).name: p.decoder for p in pictures}
    assert read_by["hopper_16bit_qtables.jpg"] == read_by["multiple_exif.jpg"] == options.decoder
    assert read_by["pil_sample_cmyk.jpg"] == read_by["transparent.webp"] == "pillow"
    assert read_by["truncated_jpeg.jpg"] == ""


def test_photos(options: ImageOptions, photos: list[Path]) -> None:
    pictures = list(read_pictures(photos[:24], options))
    assert {picture.decoder for picture in pictures} == {options.decoder}
    assert_like_reference(pictures, options.decoder)

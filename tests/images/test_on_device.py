"""Decoders of many files at a time: what goes to them, what does not, and who pays for a bad file.

The decoder here is a stand-in, so that this runs everywhere; test_device_decoders.py has the real
ones.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from blip_fast.images import ImageOptions, Status, decode, on_device, options, read_picture
from blip_fast.images import read_pictures as read
from blip_fast.images.decode import PlainJpeg
from blip_fast.images.resize import _resample, _resample_floats

SIZE = 16


class StandIn:
    """Gives every file the number of its call as pixels; refuses those of an odd width."""

    def __init__(self) -> None:
        self.batches: list[list[PlainJpeg]] = []
        self.works = True

    def decode(self, jpegs: Sequence[PlainJpeg]) -> list[Tensor | None]:
        self.batches.append(list(jpegs))
        number = len(self.batches)
        return [
            torch.full((3, SIZE, SIZE), number, dtype=torch.uint8)
            if self.works and jpeg.width % 2 == 0
            else None
            for jpeg in jpegs
        ]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setattr(options, "_is_installed", lambda module: True)
    monkeypatch.setattr(on_device, "_decoder", lambda *_: stand_in)
    return stand_in


def encoded(
    kind: str, size: tuple[int, int] = (40, 30), mode: str = "RGB", **save: object
) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (200, 90, 10)).convert(mode).save(file, kind, **save)
    return file.getvalue()


def dali() -> ImageOptions:
    return ImageOptions(size=SIZE, decoder="dali")


def test_only_whole_plain_jpegs_go_to_the_device(device: StandIn) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    jpeg = encoded("JPEG")
    cases: dict[str, tuple[object, str, Status]] = {
        "jpeg": (jpeg, "dali", Status.SUCCESS),
        "grey": (encoded("JPEG", mode="L"), "dali", Status.SUCCESS),
        "progressive": (encoded("JPEG", progressive=True), "dali", Status.SUCCESS),
        "turned": (encoded("JPEG", exif=exif), "dali", Status.SUCCESS),
        "junk behind": (jpeg + b"junk", "dali", Status.SUCCESS),
        "cmyk": (encoded("JPEG", mode="CMYK"), "pillow", Status.SUCCESS),
        "png": (encoded("PNG"), "pillow", Status.SUCCESS),
        "webp": (encoded("WEBP"), "pillow", Status.SUCCESS),
        "gif": (encoded("GIF"), "pillow", Status.SUCCESS),
        "array": (np.zeros((20, 30, 3), np.uint8), "", Status.SUCCESS),
        "tensor": (torch.zeros(3, SIZE, SIZE), "", Status.SUCCESS),
        "no end": (jpeg[:-2], "", Status.FAILED_TO_DECODE),
        "half": (jpeg[: len(jpeg) * 3 // 4], "", Status.FAILED_TO_DECODE),
        "garbage": (b"garbage" * 20, "", Status.FAILED_TO_DECODE),
        "empty": (b"", "", Status.FAILED_TO_READ),
        "no file": ("/nowhere/at/all.jpg", "", Status.FAILED_TO_READ),
    }
    pictures = list(read([source for source, _, _ in cases.values()], dali()))
    found = {k: (p.decoder, p.status) for k, p in zip(cases, pictures, strict=True)}
    assert found == {name: tuple(outcome) for name, (_, *outcome) in cases.items()}
    assert [p.width for p in pictures[:4]] == [40, 40, 40, 30]
    assert len(device.batches) == 1


def test_limits_hold_before_the_device(device: StandIn) -> None:
    tight = ImageOptions(size=SIZE, decoder="dali", max_pixels=1199)
    assert read_picture(encoded("JPEG"), tight).decoder == "pillow"  # at half its size
    tight = replace(tight, max_jpeg_pixels=1199)
    assert read_picture(encoded("JPEG"), tight).status is Status.TOO_LARGE
    assert device.batches == []


def test_a_refused_file_goes_to_pillow_and_its_neighbours_stay(device: StandIn) -> None:
    sources = [encoded("JPEG", (width, 30)) for width in (40, 41, 42)]
    pictures = list(read(sources, dali()))
    assert [p.decoder for p in pictures] == ["dali", "pillow", "dali"]
    own = read_picture(sources[1], ImageOptions(size=SIZE, decoder="pillow"))
    assert pictures[1].pixels is not None and own.pixels is not None
    assert torch.equal(pictures[1].pixels, own.pixels)
    # Alone it makes no batch with a good one, and the device must first show that it works.
    assert read_picture(sources[1], dali()).decoder == "pillow"
    assert [len(batch) for batch in device.batches] == [3, 1, 1]


def test_a_device_that_does_not_work_is_an_error(device: StandIn) -> None:
    device.works = False
    with pytest.raises(RuntimeError, match="'dali' on cpu reads nothing"):
        list(read([encoded("JPEG")] * 3, dali()))


def test_batches_are_bounded_and_in_order(device: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def sources() -> Iterator[bytes]:
        for number in range(200):
            taken.append(number)
            yield encoded("JPEG", (2 * number + 2, 2))

    assert taken == []
    pictures = read(sources(), dali(), workers=2)
    assert [next(pictures).width for _ in range(40)] == list(range(2, 82, 2))
    assert len(taken) <= 40 + 4 * on_device.BATCH
    pictures.close()
    assert not [t for t in threading.enumerate() if t.name.endswith("_pictures")]
    assert {len(batch) for batch in device.batches} == {on_device.BATCH}

    device.batches.clear()
    monkeypatch.setattr(on_device, "_BATCH_PIXELS", 100)
    sizes = [(10, 6), (10, 4), (10, 1), (100, 100), (2, 2)]
    assert [p.width for p in read([encoded("JPEG", size) for size in sizes], dali())] == [
        10, 10, 10, 100, 2,
    ]  # fmt: skip
    assert [len(batch) for batch in device.batches] == [2, 1, 1, 1]


def test_a_fault_of_the_sources_reaches_the_caller(device: StandIn) -> None:
    def sources() -> Iterator[bytes]:
        yield encoded("JPEG")
        raise OSError("the list broke")

    with pytest.raises(OSError, match="the list broke"):
        list(read(sources(), dali()))


def test_one_image_at_its_full_size_is_not_its_affair(device: StandIn) -> None:
    with pytest.raises(ValueError, match="'dali' makes squares") as caught:
        decode(encoded("JPEG"), dali())
    assert type(caught.value) is ValueError  # a mistake of the caller, not the file's status


def test_settings_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    for decoder in ("auto", "pillow", "simplejpeg"):
        with pytest.raises(ValueError, match="device is 'cuda'"):
            ImageOptions(decoder=decoder, device="cuda")
    monkeypatch.setattr(options, "_is_installed", lambda module: False)
    with pytest.raises(ValueError, match=r"nvidia\.dali.*blip-fast\[dali\]"):
        ImageOptions(decoder="dali")
    monkeypatch.undo()
    assert options._is_installed("torch.nn") and not options._is_installed("no_such.package")


def test_floats_are_filtered_like_bytes() -> None:
    """What a GPU does instead of the 8-bit filter of a CPU."""
    pixels = torch.randint(0, 256, (1, 3, 90, 70), dtype=torch.uint8)
    for width, height in ((70, 32), (32, 90), (150, 90)):
        ours = _resample_floats(pixels, width, height).int()
        error = (ours - _resample(pixels, width, height).int()).abs()
        assert error.max() <= 1 and error.float().mean() < 0.01

"""51 odd and hostile images of Pillow's own tests: each has one outcome, in bounded memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blip_fast.images import ImageOptions, Status, read_picture, read_pictures

GIB = 2**20  # in kB, the unit of /proc

BAD = Status.FAILED_TO_DECODE
LARGE = Status.TOO_LARGE

# The status of each file, and the upright width and height of those that are read.
OUTCOMES: dict[str, Status | tuple[int, int]] = {
    "16_bit_noise.tif": (32, 32),
    "16bit.cropped.tif": (64, 64),
    "apng_blend_op_over_near_transparent.png": (128, 64),
    "apng_mode_16bit.png": (128, 64),
    "apng_mode_palette_alpha.png": (128, 64),
    "avif_xmp_tags_orientation.avif": (326, 268),
    "broken.png": BAD,
    "broken_data_stream.png": BAD,
    "broken_exif_dpi.jpg": (100, 100),
    "crash-0c7e0e8e11ce787078f00b5b0ca409a167f070e0.tif": BAD,
    "decompression_bomb.gif": LARGE,
    "decompression_bomb.ico": LARGE,
    "decompression_bomb_extents.gif": (100, 100),  # its first frame; the second is the bomb
    "dispose_bgnd_transparency.gif": (38, 32),
    "exif-dpi-zerodivision.jpg": (200, 200),
    "exif_gps_typeerror.jpg": (800, 531),
    "hopper_16bit_qtables.jpg": (128, 128),
    "hopper_bad_exif.jpg": (500, 500),  # simplejpeg refuses it, Pillow decides
    **{f"hopper_orientation_{n}.jpg": (128, 128) for n in range(2, 9)},
    "hopper_orientation_6.webp": (128, 128),
    "icc-after-SOF.jpg": (10, 10),
    "icc_profile_big.jpg": (425, 250),
    "invalid-exif.jpg": (200, 200),
    "multiple_exif.jpg": (1, 1),
    "no_palette.gif": (1, 1),
    "oom-225817ca0f8c663be7ab4b9e717b02c661e66834.tif": BAD,
    "orientation_rectangle.jpg": (1, 2),  # stored as 2 x 1
    "p_16.png": (128, 128),
    "p_trns_single.png": (64, 64),
    "palette_not_needed_for_second_frame.gif": (128, 128),
    "pil_sample_cmyk.jpg": (100, 100),
    "png_decompression_dos.png": BAD,  # a text chunk that unpacks without end
    "tiff_16bit_RGB.tiff": (100, 40),
    "tiff_strip_cmyk_jpeg.tif": (100, 100),
    "transparent.gif": (200, 150),
    "transparent.png": (200, 150),
    "transparent.webp": (200, 150),
    "truncated_app14.jpg": (100, 100),  # whole but for a marker
    "truncated_end_chunk.png": BAD,
    "truncated_exif_dpi.jpg": (480, 640),  # whole but for its EXIF
    "truncated_image.png": BAD,
    "truncated_jpeg.jpg": BAD,
    "uncompressed_la.png": (128, 128),
    "xmp_tags_orientation.png": (326, 268),
    "zero_width.gif": BAD,
}


@pytest.fixture
def faults(shared_data: Path) -> Path:
    return shared_data / "image_faults"


def pixels(path: Path, **settings: object) -> torch.Tensor:
    read = read_picture(path, ImageOptions(size=64, **settings)).pixels
    assert read is not None
    return read.int()


def test_the_table_names_every_file(faults: Path) -> None:
    assert len(OUTCOMES) == 51
    assert sorted(OUTCOMES) == sorted(path.name for path in faults.iterdir())


@pytest.mark.parametrize("name", OUTCOMES)
@pytest.mark.filterwarnings("error")
def test_outcome(name: str, faults: Path) -> None:
    outcome = OUTCOMES[name]
    picture = read_picture(faults / name, ImageOptions(size=32))
    if isinstance(outcome, Status):
        assert (picture.status, picture.pixels) == (outcome, None)
        assert picture.error and "\n" not in picture.error and " at 0x" not in picture.error
    else:
        assert (picture.status, picture.error) == (Status.SUCCESS, "")
        assert (picture.width, picture.height) == outcome
        assert picture.pixels is not None and picture.pixels.shape == (3, 32, 32)


def test_neighbours_are_unaffected(faults: Path) -> None:
    """Together and in threads, every file has the outcome and the pixels it has alone."""
    paths = [faults / name for name in OUTCOMES]
    options = ImageOptions(size=32)
    for path, together in zip(paths, read_pictures(paths, options, workers=4), strict=True):
        alone = read_picture(path, options)
        assert (together.name, together.status, together.error) == (
            str(path), alone.status, alone.error,
        )  # fmt: skip
        if alone.pixels is not None:
            assert torch.equal(together.pixels, alone.pixels)


def test_orientations_agree(faults: Path) -> None:
    first = pixels(faults / "hopper_orientation_2.jpg")
    others = [f"hopper_orientation_{n}.jpg" for n in range(3, 9)] + ["hopper_orientation_6.webp"]
    for name in others:
        for decoder in ("auto", "pillow"):
            turned = pixels(faults / name, decoder=decoder)
            assert (turned - first).abs().float().mean() < 4, name  # each was encoded anew
    stored = pixels(faults / "hopper_orientation_3.jpg", exif_orientation=False)
    assert torch.equal(stored.flip(1, 2), pixels(faults / "hopper_orientation_3.jpg"))
    assert (stored - first).abs().float().mean() > 20


@pytest.mark.parametrize("name", ["16_bit_noise.tif", "16bit.cropped.tif"])
def test_16_bits_are_scaled_and_not_clipped(name: str, faults: Path) -> None:
    with Image.open(faults / name) as image:
        expected = np.asarray(image).mean() / 257
    assert pixels(faults / name).float().mean().item() == pytest.approx(expected, abs=0.5)


@pytest.mark.parametrize("name", ["transparent.png", "transparent.gif", "transparent.webp"])
def test_transparency_shows_the_background(name: str, faults: Path) -> None:
    for background, level in (("white", (255, 255, 255)), ("black", (0, 0, 0))):
        assert pixels(faults / name, background=background)[:, 0, 0].tolist() == list(level)
    assert pixels(faults / name, background=(9, 80, 200))[:, -1, -1].tolist() == [9, 80, 200]


def test_cmyk_is_as_pillow_has_it(faults: Path) -> None:
    with Image.open(faults / "pil_sample_cmyk.jpg") as image:
        expected = np.array(image.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC))
    own = pixels(faults / "pil_sample_cmyk.jpg")
    assert torch.equal(own, torch.from_numpy(expected).permute(2, 0, 1).int())


MEASURE = """
import sys
from pathlib import Path
from blip_fast.images import read_picture

for path in map(Path, sys.argv[1:]):
    print(path.name, read_picture(path).status)
peak = next(line for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))
print("peak", peak.split()[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_none_takes_the_process_over_1_gib(faults: Path, large_images: list[Path]) -> None:
    """All 51, and the largest images that the limits let pass.

    VmHWM is the peak of this program alone; ru_maxrss would begin at that of the test's process.
    """
    paths = [*(str(faults / name) for name in OUTCOMES), *map(str, large_images)]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *paths], capture_output=True, text=True, check=True
    )
    *statuses, (_, peak) = (line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert len(statuses) == len(paths)
    for name, status in statuses:
        outcome = OUTCOMES.get(name, Status.SUCCESS)
        assert status == str(outcome if isinstance(outcome, Status) else Status.SUCCESS), name
    assert int(peak) < GIB, f"the peak was {int(peak)} kB"
    assert int(peak) > GIB // 3  # the large ones were really there


@pytest.fixture
def large_images(tmp_path: Path, blank_png) -> list[Path]:
    images = {
        "opaque.png": blank_png(8192, 8192, clear=False),
        "clear.png": blank_png(5792, 5792),
        "tall.png": blank_png(512, 65535),
    }
    for name, data in images.items():
        (tmp_path / name).write_bytes(data)
    grey = Image.new("L", (14_000, 12_000), 90)  # 168 million pixels
    jpegs = {"large.jpg": False, "scans.jpg": True}
    for name, progressive in jpegs.items():
        grey.save(tmp_path / name, progressive=progressive)
    return [tmp_path / name for name in (*images, *jpegs)]

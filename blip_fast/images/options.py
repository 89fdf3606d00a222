"""How images are to be read: the settings, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, get_args

import torch

Decoder = Literal["auto", "simplejpeg", "pillow", "dali", "nvimgcodec"]
Background = str | tuple[int, int, int]

COLORS = {"white": (255, 255, 255), "black": (0, 0, 0)}

# Decoders that work on a device and on many images at a time, and what they are part of. Their
# names are also those of the package's extras.
ON_DEVICE = {"dali": "nvidia.dali", "nvimgcodec": "nvidia.nvimgcodec"}

# 67 million pixels let every single-shot camera of today pass. Together with MAX_BYTES they keep
# one image at a time under 1 GiB: 230 MiB for Python and torch (550 with torch's CUDA build), 128
# MiB of encoded bytes, and 256 MiB for a Pillow image of 4 bytes a pixel. Pixels of files that
# take more count twice; a WebP at that limit takes 0.8 GiB, 1.1 beside a CUDA build.
MAX_PIXELS = 2**26
MAX_BYTES = 2**27

# A JPEG comes out of its decoder at a half, a quarter or an eighth of its size without ever being
# there as a whole, so that larger ones, of telephones with 200 million pixels, stay under 1 GiB,
# too. What limits them is time. One in several scans, as progressive ones are, is held whole before
# its first pixel, in coefficients of 2 bytes, and these have a limit of their own.
MAX_JPEG_PIXELS = 2**28
MAX_COEFFICIENT_BYTES = 2**29

# JPEG's own limit. A resize filter's table takes 32 bytes for each pixel of a side, so that an
# image one pixel high and within MAX_PIXELS would take gigabytes for the table alone.
MAX_SIDE = 65_535


@dataclass(frozen=True)
class ImageOptions:
    """How images become model input.

    Attributes:
        size: side of the square the model takes, in pixels; the aspect ratio is not kept, as in
            BLIP's test transform.
        decoder: "simplejpeg" (JPEG alone) or "pillow" is used and nothing else; "auto" takes
            simplejpeg for plain JPEG and Pillow, the reference, for all that simplejpeg refuses.
            "dali" and "nvimgcodec" decode plain JPEG, many at a time, on `device`; every other
            kind of file, and what they refuse, goes to Pillow: see `Picture.decoder`.
        device: where "dali" and "nvimgcodec" work and leave their pixels, as "cuda:0"; all other
            decoders work on the "cpu".
        background: what shows through transparency: "white", "black" or (red, green, blue).
            BLIP's own code amounts to black.
        exif_orientation: turn the image as its EXIF or XMP tag says. BLIP's own code does not.
            The orientation of a TIFF is part of that format, and Pillow always applies it.
        max_pixels: width times height, known from the header, beyond which an image is
            `too_large`; half of it for WebP, AVIF, CMYK and transparency, which take more memory.
            Pillow refuses beyond twice its own `Image.MAX_IMAGE_PIXELS`, whatever this says.
        max_jpeg_pixels: the same for JPEG alone, where it is more. One over `max_pixels` is decoded
            at the half, quarter or eighth of its size that is within. Of 70 million pixels, half
            the size gives at 384 what the whole gives within a grey level where the picture is
            smooth, and 8 (on average 0.4) where it is full of noise.
        max_bytes: encoded bytes beyond which an image is `too_large`.

    Raises:
        ValueError: where a setting is none of these.
    """

    size: int = 384
    decoder: Decoder = "auto"
    device: str = "cpu"
    background: Background = "white"
    exif_orientation: bool = True
    max_pixels: int = MAX_PIXELS
    max_jpeg_pixels: int = MAX_JPEG_PIXELS
    max_bytes: int = MAX_BYTES

    def __post_init__(self) -> None:
        for name in ("size", "max_pixels", "max_jpeg_pixels", "max_bytes"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be an integer of at least 1")
        if self.decoder not in get_args(Decoder):
            raise ValueError(
                f"decoder is {self.decoder!r}; it must be one of {', '.join(get_args(Decoder))}"
            )
        self._check_device()
        if not _is_color(self.background):
            raise ValueError(
                f"background is {self.background!r}; it must be {', '.join(COLORS)} or a tuple of "
                "red, green and blue, integers from 0 to 255"
            )

    def _check_device(self) -> None:
        if self.decoder in ON_DEVICE and not _is_installed(ON_DEVICE[self.decoder]):
            raise ValueError(
                f"decoder {self.decoder!r} needs {ON_DEVICE[self.decoder]}, which is not "
                f"installed: pip install 'blip-fast[{self.decoder}]', or take decoder 'auto'"
            )
        kind = torch.device(self.device).type
        if kind not in ("cpu", "cuda") or (kind == "cuda" and self.decoder not in ON_DEVICE):
            raise ValueError(
                f"device is {self.device!r} and decoder {self.decoder!r}; "
                f"{' and '.join(ON_DEVICE)} decode on cpu or cuda, all others on cpu"
            )

    @property
    def background_color(self) -> tuple[int, int, int]:
        """Red, green and blue, from 0 to 255."""
        return COLORS[self.background] if isinstance(self.background, str) else self.background


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even what it is part of
        return False


def _is_color(value: object) -> bool:
    if isinstance(value, str):
        return value in COLORS
    return (
        isinstance(value, tuple)
        and len(value) == 3
        and all(isinstance(level, int) and 0 <= level <= 255 for level in value)
    )

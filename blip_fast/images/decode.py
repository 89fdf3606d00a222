"""Encoded bytes to pixels: simplejpeg where it is as good, Pillow, the reference, elsewhere."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

import simplejpeg
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from blip_fast.images.modes import flatten
from blip_fast.images.options import MAX_SIDE, ON_DEVICE, ImageOptions
from blip_fast.images.quiet import pillow_is_quiet
from blip_fast.images.status import ImageError, Status, failing_as

# The kinds of file people keep pictures in. Pillow knows more, but some of those start another
# program (EPS), and every one is a parser that hostile bytes can reach.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "ICO")

# Their decoders keep up to 16 bytes a pixel beside the image that comes out, against 4 to 8 of
# the others (measured), so their pixels count twice. So do those of CMYK, for progressive JPEG,
# and those of transparent images, which are laid on a second image of their size.
_COUNTED_TWICE = ("AVIF", "WEBP")

# Orientations whose upright image is as wide as the stored one is high.
TURNED = (5, 6, 7, 8)

_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"  # JPEG's markers

_pillow_lock = threading.Lock()


@dataclass(frozen=True, eq=False)
class Decoded:
    """An image at its full size, as it is stored.

    Attributes:
        pixels: uint8 [3, height, width] of any strides, or a loaded Pillow image (RGB or L).
        orientation: the EXIF number, 1 to 8, of the turn that sets it upright. It is left to
            `resize`, because turning the small square costs next to nothing.
        decoder: which one ran, "simplejpeg" or "pillow"; "" where pixels were given.
    """

    pixels: Tensor | Image.Image
    orientation: int = 1
    decoder: str = ""

    @property
    def stored_size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        if isinstance(self.pixels, Tensor):
            return self.pixels.shape[2], self.pixels.shape[1]
        return self.pixels.size

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels of the upright image."""
        width, height = self.stored_size
        return (height, width) if self.orientation in TURNED else (width, height)


@dataclass(frozen=True, eq=False)
class PlainJpeg:
    """A JPEG in grey or colour that has passed every check but has not been decoded.

    Attributes:
        data: the file.
        width, height: as it is stored, in pixels.
        orientation: as of `Decoded`.
    """

    data: bytes
    width: int
    height: int
    orientation: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels of the upright image."""
        turned = self.orientation in TURNED
        return (self.height, self.width) if turned else (self.width, self.height)


def decode(data: bytes, options: ImageOptions) -> Decoded:
    """Decode the first frame of an image file; its kind is told by its content.

    The header is always read by Pillow, which decides on size, kind and orientation.

    Raises:
        ValueError: where the decoder of the options works on a device: see `read_pictures`.
        ImageError: `failed_to_decode` with the reason, also where an image is cut short;
            `too_large` before any pixel is decoded.
    """
    if options.decoder in ON_DEVICE:
        raise ValueError(
            f"decoder {options.decoder!r} makes squares of many files at once, not one image at "
            "its full size; use read_picture or read_pictures, or decoder 'auto'"
        )
    with _guarded(options), _open(data) as image:
        _check_header(image, options)
        if options.decoder == "pillow":
            return _from_file(image, options)
        plain = _is_plain_jpeg(image)
        if options.decoder == "simplejpeg":
            if not plain:
                raise ValueError(
                    f"decoder 'simplejpeg' reads JPEG in grey or colour, and this is "
                    f"{image.format} in {image.mode}; use decoder 'auto'"
                )
            return _from_jpeg(data, image, options)
        if plain:
            try:
                return _from_jpeg(data, image, options)
            except ValueError:
                pass  # simplejpeg is stricter than Pillow, and Pillow is who decides
        return _from_file(image, options)


def plain_jpeg(data: bytes, options: ImageOptions) -> PlainJpeg | None:
    """A file for decoders that take plain JPEG alone, or None where it is for Pillow to decide.

    That is so for every other kind of file, and for a JPEG whose end is missing or whose header
    libjpeg and Pillow read differently: decoders may fill up with grey what is not there.

    Raises:
        ImageError: as `decode` does, as far as the header tells.
    """
    with _guarded(options), _open(data) as image:
        _check_header(image, options)
        # The last scan ends the picture; thumbnails, which have ends of their own, come before.
        whole = data.rfind(_END_OF_IMAGE) > data.rfind(_START_OF_SCAN) > 0
        if not whole or not _is_plain_jpeg(image):
            return None
        try:
            height, width = simplejpeg.decode_jpeg_header(data)[:2]
        except ValueError:
            return None
        if (width, height) != image.size:
            return None
        return PlainJpeg(data, width, height, _orientation(image, options))


def from_pillow(image: Image.Image, options: ImageOptions) -> Decoded:
    """Take an image that the caller has opened; one that is animated by the frame it is at.

    Raises:
        ImageError: as `decode` does.
    """
    with _guarded(options):
        check_size(*image.size, options.max_pixels, twice=image.has_transparency_data)
        with _pillow_lock:  # the same image may stand in a list twice, and loading changes it
            orientation = _load(image, options)
        return Decoded(flatten(image, options.background_color), orientation)


def check_size(width: int, height: int, max_pixels: int, twice: bool = False) -> None:
    """Raise an ImageError, `too_large`, where an image has too many pixels or a side too long.

    Args:
        twice: count every pixel as two.
    """
    if width < 1 or height < 1:
        raise ImageError(Status.FAILED_TO_DECODE, f"{width} x {height} pixels are none")
    if width * height * (1 + twice) > max_pixels:
        counted = ", which count twice for this kind of file" if twice else ""
        raise ImageError(
            Status.TOO_LARGE,
            f"{width} x {height} are {width * height} pixels{counted}; the limit is max_pixels "
            f"{max_pixels}",
        )
    if max(width, height) > MAX_SIDE:
        raise ImageError(
            Status.TOO_LARGE,
            f"{width} x {height} pixels have a side over the limit of {MAX_SIDE}",
        )


def _check_header(image: Image.Image, options: ImageOptions) -> None:
    twice = image.format in _COUNTED_TWICE or image.mode == "CMYK"
    twice = twice or image.has_transparency_data
    check_size(*image.size, options.max_pixels, twice=twice)


def _is_plain_jpeg(image: Image.Image) -> bool:
    return image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB")


@contextmanager
def _guarded(options: ImageOptions) -> Iterator[None]:
    """Let nothing out of Pillow but an ImageError, and no warnings at all."""
    with failing_as(Status.FAILED_TO_DECODE), pillow_is_quiet():
        try:
            yield
        except Image.DecompressionBombError as error:
            raise ImageError(
                Status.TOO_LARGE, f"{error} The limit here: max_pixels {options.max_pixels}"
            ) from None


def _open(data: bytes) -> Image.Image:
    """Read the header and no more."""
    try:
        return Image.open(BytesIO(data), formats=_formats())
    except UnidentifiedImageError:  # its own text names an address in memory
        raise ImageError(
            Status.FAILED_TO_DECODE,
            f"{len(data)} bytes that begin with {data[:8]!r} are no image of a known kind, or its "
            "header is damaged",
        ) from None


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # AVIF came to Pillow late


def _from_jpeg(data: bytes, image: Image.Image, options: ImageOptions) -> Decoded:
    height, width = simplejpeg.decode_jpeg_header(data)[:2]
    if (width, height) != image.size:  # or the limit on pixels would have been checked in vain
        raise ValueError(f"the size is {image.size} to Pillow, {(width, height)} to simplejpeg")
    pixels = torch.from_numpy(simplejpeg.decode_jpeg(data)).permute(2, 0, 1)
    return Decoded(pixels, _orientation(image, options), "simplejpeg")


def _from_file(image: Image.Image, options: ImageOptions) -> Decoded:
    orientation = _load(image, options)
    return Decoded(flatten(image, options.background_color), orientation, "pillow")


def _load(image: Image.Image, options: ImageOptions) -> int:
    """Decode in place, and only then ask for the orientation: a PNG's may follow its pixels."""
    image.load()
    check_size(*image.size, options.max_pixels)  # that of an ICO is known no earlier
    return _orientation(image, options)


def _orientation(image: Image.Image, options: ImageOptions) -> int:
    """1 to 8; 1 where nothing usable is said: bad EXIF is no reason to lose a picture."""
    if not options.exif_orientation:
        return 1
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1

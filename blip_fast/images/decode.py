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
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from blip_fast.images.modes import flatten
from blip_fast.images.options import MAX_COEFFICIENT_BYTES, MAX_SIDE, ON_DEVICE, ImageOptions
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

# JPEG's markers.
_START_OF_IMAGE, _START_OF_SCAN, _END_OF_IMAGE = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"

_pillow_lock = threading.Lock()


@dataclass(frozen=True, eq=False)
class Decoded:
    """An image as it is stored, at its full size where that is within the limit.

    Attributes:
        pixels: uint8 [3, height, width] of any strides, or a loaded Pillow image (RGB or L).
        orientation: the EXIF number, 1 to 8, of the turn that sets it upright. It is left to
            `resize`, because turning the small square costs next to nothing.
        decoder: which one ran, "simplejpeg" or "pillow"; "" where pixels were given.
        full_size: width and height of the file, as stored, where a JPEG too large to be decoded
            whole was decoded at a fraction of its size.
    """

    pixels: Tensor | Image.Image
    orientation: int = 1
    decoder: str = ""
    full_size: tuple[int, int] | None = None

    @property
    def stored_size(self) -> tuple[int, int]:
        """Width and height of `pixels`."""
        if isinstance(self.pixels, Tensor):
            return self.pixels.shape[2], self.pixels.shape[1]
        return self.pixels.size

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of `pixels` when they stand upright."""
        return self._upright(*self.stored_size)

    @property
    def file_size(self) -> tuple[int, int]:
        """The same at the size that the file has."""
        return self._upright(*(self.full_size or self.stored_size))

    def _upright(self, width: int, height: int) -> tuple[int, int]:
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
        part = _check_header(data, image, options)
        if options.decoder == "pillow":
            return _from_file(image, options, part)
        plain = _is_plain_jpeg(image)
        if options.decoder == "simplejpeg":
            if not plain:
                raise ValueError(
                    f"decoder 'simplejpeg' reads JPEG in grey or colour, and this is "
                    f"{image.format} in {image.mode}; use decoder 'auto'"
                )
            return _from_jpeg(data, image, options, part)
        if plain:
            try:
                return _from_jpeg(data, image, options, part)
            except ValueError:
                pass  # simplejpeg is stricter than Pillow, and Pillow is who decides
        return _from_file(image, options, part)


def plain_jpeg(data: bytes, options: ImageOptions) -> PlainJpeg | None:
    """A file for decoders that take plain JPEG alone, or None where it is for Pillow to decide.

    That is so for every other kind of file, for a JPEG too large to be decoded whole, and for one
    whose end is missing or whose header libjpeg and Pillow read differently: decoders may fill up
    with grey what is not there.

    Raises:
        ImageError: as `decode` does, as far as the header tells.
    """
    with _guarded(options), _open(data) as image:
        if _check_header(data, image, options) > 1:
            return None
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


def check_size(
    width: int, height: int, max_pixels: int, twice: bool = False, name: str = "max_pixels"
) -> None:
    """Raise an ImageError, `too_large`, where an image has too many pixels or a side too long.

    Args:
        twice: count every pixel as two.
        name: of the limit.
    """
    if width < 1 or height < 1:
        raise ImageError(Status.FAILED_TO_DECODE, f"an image of {width} x {height} pixels is empty")
    if width * height * (1 + twice) > max_pixels:
        counted = ", which count twice for this kind of file" if twice else ""
        raise ImageError(
            Status.TOO_LARGE,
            f"{width} x {height} are {width * height} pixels{counted}; the limit is {name} "
            f"{max_pixels}",
        )
    if max(width, height) > MAX_SIDE:
        raise ImageError(
            Status.TOO_LARGE,
            f"{width} x {height} pixels have a side over the limit of {MAX_SIDE}",
        )


def _check_header(data: bytes, image: Image.Image, options: ImageOptions) -> int:
    """What part of its size, 1 for all, 2 for a half, 4 or 8, an image has to be decoded at.

    Raises:
        ImageError: `too_large`.
    """
    twice = image.format in _COUNTED_TWICE or image.mode == "CMYK"
    twice = twice or image.has_transparency_data
    width, height = image.size
    within = width * height * (1 + twice) <= options.max_pixels
    if within or not isinstance(image, JpegImageFile):
        check_size(width, height, options.max_pixels, twice)
        return 1
    most = max(options.max_pixels, options.max_jpeg_pixels)
    check_size(width, height, most, twice, "max_jpeg_pixels")
    held = _coefficient_bytes(data, image)
    if held > MAX_COEFFICIENT_BYTES:
        raise ImageError(
            Status.TOO_LARGE,
            f"{width} x {height} pixels in several scans, as of a progressive JPEG, need {held} "
            f"bytes of coefficients; the limit is {MAX_COEFFICIENT_BYTES}, beyond max_pixels "
            f"{options.max_pixels}",
        )
    for part in (2, 4, 8):
        if -(-width // part) * -(-height // part) * (1 + twice) <= options.max_pixels:
            return part
    raise ImageError(
        Status.TOO_LARGE,
        f"{width} x {height} pixels are over the limit, max_pixels {options.max_pixels}, even at "
        "an eighth of the size",
    )


def _coefficient_bytes(data: bytes, image: JpegImageFile) -> int:
    """What libjpeg holds of a JPEG before it gives a pixel: nothing of one in a single scan."""
    # Pillow stops behind the header of the first scan: marker, length, number of components, two
    # bytes for each, three more. What looks otherwise may be anything, and counts as several scans.
    assert image.fp is not None
    begin = image.fp.tell() - 8 - 2 * image.layers
    single = data[begin : begin + 2] == _START_OF_SCAN and data[begin + 4] == image.layers
    if single and not image.info.get("progressive"):
        return 0
    factors = [(across, down) for _, across, down, _ in image.layer]
    largest = max(across for across, _ in factors) * max(down for _, down in factors)
    samples = sum(across * down for across, down in factors) / largest
    return int(2 * samples * image.width * image.height)


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
    except Image.DecompressionBombError:
        if not data.startswith(_START_OF_IMAGE):
            raise
        return JpegImageFile(BytesIO(data))  # whose limit is ours, because it can come out smaller
    except UnidentifiedImageError:  # its own text names an address in memory
        raise ImageError(
            Status.FAILED_TO_DECODE,
            f"{len(data)} bytes that begin with {data[:8]!r} are not an image of a known kind, or "
            "its header is damaged",
        ) from None


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # AVIF came to Pillow late


def _from_jpeg(data: bytes, image: Image.Image, options: ImageOptions, part: int) -> Decoded:
    height, width = simplejpeg.decode_jpeg_header(data)[:2]
    if (width, height) != image.size:  # or the limit on pixels would have been checked in vain
        raise ValueError(f"the size is {image.size} to Pillow, {(width, height)} to simplejpeg")
    # The least that is at least this large is exactly the part.
    least = {"min_width": -(-width // part), "min_height": -(-height // part)} if part > 1 else {}
    pixels = torch.from_numpy(simplejpeg.decode_jpeg(data, **least)).permute(2, 0, 1)
    full_size = (width, height) if part > 1 else None
    return Decoded(pixels, _orientation(image, options), "simplejpeg", full_size)


def _from_file(image: Image.Image, options: ImageOptions, part: int) -> Decoded:
    full_size = image.size if part > 1 else None
    if part > 1:
        image.draft(image.mode, (image.width // part, image.height // part))
    orientation = _load(image, options)
    pixels = flatten(image, options.background_color)
    return Decoded(pixels, orientation, "pillow", full_size)


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

"""From whatever a caller calls an image to what the model takes: uint8 [3, size, size]."""

from blip_fast.images.augment import Augment
from blip_fast.images.decode import Decoded, decode
from blip_fast.images.find import IMAGE_SUFFIXES, find_images
from blip_fast.images.load import Source, name_of, read_bytes
from blip_fast.images.options import ON_DEVICE, Decoder, ImageOptions
from blip_fast.images.picture import Picture, stack
from blip_fast.images.read import read_picture, read_pictures
from blip_fast.images.resize import resize
from blip_fast.images.status import ImageError, Status

__all__ = [
    "IMAGE_SUFFIXES",
    "ON_DEVICE",
    "Augment",
    "Decoded",
    "Decoder",
    "ImageError",
    "ImageOptions",
    "Picture",
    "Source",
    "Status",
    "decode",
    "find_images",
    "name_of",
    "read_bytes",
    "read_picture",
    "read_pictures",
    "resize",
    "stack",
]

"""Images that are arrays or tensors already: which shapes and types are taken, and as what."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from blip_fast.images.decode import Decoded, check_size
from blip_fast.images.modes import flatten
from blip_fast.images.options import ImageOptions
from blip_fast.images.status import ImageError, Status


def from_array(array: np.ndarray, options: ImageOptions) -> Decoded:
    """Take uint8 [height, width] or [height, width, channels]: grey, grey+alpha, RGB or RGBA.

    Raises:
        ImageError: `failed_to_decode` naming dtype or shape, or `too_large`.
    """
    if array.dtype != np.uint8:
        raise _refusal(
            f"an array of dtype {array.dtype}; arrays are taken as uint8 from 0 to 255. Multiply "
            "floats from 0 to 1 by 255, or give normalised model input as a tensor"
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (2, 3, 4)):
        raise _refusal(
            f"an array of shape {_shape(array.shape)}; arrays are taken as [height, width] or "
            "[height, width, 1 to 4 channels]" + _hint(array.shape, 0, "transpose(1, 2, 0)")
        )
    check_size(array.shape[1], array.shape[0], options.max_pixels)
    if array.ndim == 3 and array.shape[2] == 3:
        # torch takes neither negative strides nor read-only memory without a word
        rgb = np.require(array, requirements=["C", "W"])
        return Decoded(torch.from_numpy(rgb).permute(2, 0, 1))
    image = Image.fromarray(np.ascontiguousarray(array))
    return Decoded(flatten(image, options.background_color))


def from_tensor(tensor: Tensor, options: ImageOptions) -> Decoded:
    """Take uint8 [1 or 3, height, width].

    Raises:
        ImageError: `failed_to_decode` naming dtype or shape, or `too_large`.
    """
    if tensor.dtype != torch.uint8:
        raise _refusal(
            f"a tensor of dtype {tensor.dtype}; tensors are taken as uint8, or as floats that are "
            "normalised model input"
        )
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3):
        raise _refusal(
            f"a uint8 tensor of shape {_shape(tensor.shape)}; tensors are taken as "
            "[3, height, width] or [1, height, width]" + _hint(tensor.shape, 2, "permute(2, 0, 1)")
        )
    check_size(tensor.shape[2], tensor.shape[1], options.max_pixels)
    return Decoded(tensor.cpu().expand(3, -1, -1))


def from_normalised(tensor: Tensor, size: int) -> Tensor:
    """Take floats [3, size, size] as what they are: model input, resized and normalised.

    Returns:
        float32 [3, size, size] on the CPU, in memory of its own.

    Raises:
        ImageError: `failed_to_decode` naming the shape, or where values are not finite.
    """
    if tensor.shape != (3, size, size):
        raise _refusal(
            f"a float tensor of shape {_shape(tensor.shape)}; float tensors are taken as "
            f"normalised model input, [3, {size}, {size}]. Give pixels as uint8"
            + _hint(tensor.shape, 2, "permute(2, 0, 1)")
        )
    pixels = tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
    if not pixels.isfinite().all():
        raise _refusal("a float tensor with values that are not finite")
    return pixels


def _refusal(message: str) -> ImageError:
    return ImageError(Status.FAILED_TO_DECODE, message)


def _shape(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _hint(shape: Sequence[int], channels_at: int, remedy: str) -> str:
    """The way out where the channels are plainly at the other end."""
    return f"; use {remedy}" if len(shape) == 3 and shape[channels_at] in (1, 3, 4) else ""

"""JPEG to upright squares: decoded by nvImageCodec, on a GPU or the CPU, and resized by torch."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blip_fast.images.decode import Decoded, PlainJpeg
from blip_fast.images.resize import resize

# It writes to the terminal about every file it refuses; a row's status says that.
os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")

from nvidia import nvimgcodec  # reads the variable as it is imported


class NvImageCodec:
    """nvImageCodec's decoder, and the resize of `blip_fast.images.resize`.

    Args:
        size: side of the squares, in pixels.
        device: "cpu" for its CPU back-ends alone, or a GPU.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self._size = size
        self._device = device
        self._lock = threading.Lock()
        if device.type == "cpu":
            index = nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY
            backends = [nvimgcodec.Backend(nvimgcodec.BackendKind.CPU_ONLY)]
        else:
            index, backends = device.index or 0, None  # all: hardware, CUDA and, last, the CPU
        self._decoder = nvimgcodec.Decoder(
            device_id=index, backends=backends, options=":fancy_upsampling=1"  # as libjpeg does
        )  # fmt: skip
        self._parameters = nvimgcodec.DecodeParams(
            apply_exif_orientation=False,  # the options say whether, and XMP may
            color_spec=nvimgcodec.ColorSpec.SRGB,
            sample_format=nvimgcodec.SampleFormat.I_RGB,
        )

    def decode(self, jpegs: Sequence[PlainJpeg]) -> list[Tensor | None]:
        """Decode, resize and set upright; None for a file that nvImageCodec refuses."""
        with self._lock:
            streams = [nvimgcodec.CodeStream(jpeg.data) for jpeg in jpegs]
            images = self._decoder.decode(
                streams, params=self._parameters, cuda_stream=self._stream()
            )
            return [
                None if image is None else resize(self._decoded(image, jpeg), self._size)
                for image, jpeg in zip(images, jpegs, strict=True)
            ]

    def _decoded(self, image: Any, jpeg: PlainJpeg) -> Decoded:
        if self._device.type == "cpu":
            pixels = torch.from_numpy(np.asarray(image))
        else:
            pixels = torch.as_tensor(image.cuda(), device=self._device)
        return Decoded(pixels.permute(2, 0, 1), jpeg.orientation)

    def _stream(self) -> int:
        if self._device.type == "cpu":
            return 0
        return torch.cuda.current_stream(self._device).cuda_stream

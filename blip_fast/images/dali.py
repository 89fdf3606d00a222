"""JPEG to upright squares by NVIDIA DALI: on a GPU, or on the CPU where there is none.

The resize is done as `blip_fast.images.resize` does it, one axis after the other with 8 bits
between, and differs from it by fractions of a grey level.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, pipeline_def, types
from torch import Tensor

from blip_fast.images.decode import PlainJpeg
from blip_fast.images.resize import set_upright, size_between


class Dali:
    """A DALI pipeline from files to squares.

    Args:
        size: side of the squares, in pixels.
        device: "cpu" for DALI's CPU operators, or a GPU.
        batch: files given at once, at most.
        threads: that DALI works with on the CPU.
    """

    def __init__(self, size: int, device: torch.device, batch: int, threads: int) -> None:
        self._size = size
        self._lock = threading.Lock()  # one run at a time; pictures may be read in many threads
        on_gpu = device.type == "cuda"
        index = device.index if device.index is not None or not on_gpu else 0
        self._pipeline: Pipeline = _squares(
            size,
            "mixed" if on_gpu else "cpu",
            batch_size=batch,
            num_threads=threads,
            device_id=index if on_gpu else None,
            prefetch_queue_depth=1,
        )
        self._pipeline.build()

    def decode(self, jpegs: Sequence[PlainJpeg]) -> list[Tensor | None]:
        """Decode, resize and set upright; None for a file that DALI refuses.

        DALI fails whole batches, so one that fails is halved until the files at fault are alone.
        """
        with self._lock:
            return self._halved(jpegs)

    def _halved(self, jpegs: Sequence[PlainJpeg]) -> list[Tensor | None]:
        try:
            squares = self._run(jpegs)
        except RuntimeError:
            if len(jpegs) == 1:
                return [None]
            middle = len(jpegs) // 2
            return [*self._halved(jpegs[:middle]), *self._halved(jpegs[middle:])]
        return [
            set_upright(square, jpeg.orientation).clone(memory_format=torch.contiguous_format)
            for square, jpeg in zip(squares, jpegs, strict=True)
        ]

    def _run(self, jpegs: Sequence[PlainJpeg]) -> Tensor:
        """uint8 [N, 3, size, size], as stored.

        Raises:
            RuntimeError: where one cannot be read; the pipeline can go on.
        """
        between = [size_between(j.width, j.height, j.orientation, self._size) for j in jpegs]
        (squares,) = self._pipeline.run(
            encoded=[np.frombuffer(jpeg.data, np.uint8) for jpeg in jpegs],
            between=[np.array((height, width), np.float32) for width, height in between],
        )
        return torch.from_dlpack(squares.as_tensor())


@pipeline_def
def _squares(size: int, device: str) -> Tensor:
    """Files as bytes, and the size after the first axis is filtered, to uint8 [3, size, size]."""
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
    between = fn.external_source(name="between", dtype=types.FLOAT, ndim=1)
    image = fn.decoders.image(
        encoded,
        device=device,
        output_type=types.RGB,
        adjust_orientation=False,  # the options say whether, and XMP may
        jpeg_fancy_upsampling=True,  # as libjpeg does
    )
    for shape in (between, (size, size)):
        image = fn.resize(
            image, size=shape, mode="stretch", interp_type=types.INTERP_CUBIC, antialias=True
        )
    return fn.transpose(image, perm=[2, 0, 1])

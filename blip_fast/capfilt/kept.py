"""The kept pairs as members of a tar shard: one sample a text, as webdataset's readers expect.

    00000_00012_1.jpg    the picture's own bytes
    00000_00012_1.txt    the text
    00000_00012_1.json   the scores, the source's key, and what came with the picture

The name is made of shard, picture and candidate, never of a key: that may be `../../x`. A picture
of which several texts were kept is there as often.
"""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import torch
from PIL import Image

from blip_fast.capfilt.jobs import Job
from blip_fast.capfilt.rows import Candidate, Row
from blip_fast.images import ImageOptions, decode
from blip_fast.images.resize import set_upright

Members = list[tuple[str, bytes]]

_ANY = 2**40


def members(job: Job) -> Members:
    """Names and contents of a picture's kept pairs, in order; none where no text was kept."""
    row = job.row
    assert row is not None and job.picture is not None
    places = [place for place, candidate in enumerate(row.candidates) if candidate.kept]
    if not places or job.data is None:
        return []
    suffix, image = readable(job.data)
    files: Members = []
    for place in places:
        candidate = row.candidates[place]
        name = pair_name(row.shard, row.number, place)
        about = _about(row, candidate, dict(job.picture.extra))
        files += [
            (f"{name}.{suffix}", image),
            (f"{name}.txt", _utf8(candidate.text)),
            (f"{name}.json", _utf8(json.dumps(about, ensure_ascii=False))),
        ]
    return files


def pair_name(shard: int, number: int, place: int) -> str:
    """What a pair is called in its shard; `place` is that of the candidate in its row."""
    return f"{shard:05d}_{number:05d}_{place}"


def readable(data: bytes) -> tuple[str, bytes]:
    """A picture as other readers take it, with its suffix: JPEG, PNG and WebP as they are.

    Of the other kinds, which they would leave out without a word, the pixels, as PNG.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg", data
    if data.startswith(b"\x89PNG"):
        return "png", data
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp", data
    decoded = decode(data, ImageOptions(max_pixels=_ANY))  # the run's own limit let it pass
    pixels = decoded.pixels
    if isinstance(pixels, Image.Image):
        pixels = torch.from_numpy(np.array(pixels.convert("RGB"))).permute(2, 0, 1)
    upright = set_upright(pixels, decoded.orientation)
    return "png", _encoded(upright, None, "PNG")


def thumbnail(job: Job, side: int) -> bytes:
    """A JPEG of a picture, its longer side as given; empty where there is no picture."""
    if not job.views or not job.width or not job.height:
        return b""
    pixels = next(iter(job.views.values()))
    ratio = min(max(job.width / job.height, 0.2), 5.0)  # a panorama keeps some height
    size = (round(side * min(ratio, 1)), round(side / max(ratio, 1)))
    return _encoded(pixels, size, "JPEG", quality=80)


def _encoded(
    pixels: torch.Tensor, size: tuple[int, int] | None, kind: str, **settings: Any
) -> bytes:
    image = Image.fromarray(pixels.permute(1, 2, 0).cpu().contiguous().numpy())
    file = io.BytesIO()
    (image.resize(size) if size else image).save(file, kind, **settings)
    return file.getvalue()


def _about(row: Row, candidate: Candidate, extra: dict[str, Any]) -> dict[str, Any]:
    return {
        "key": row.key,
        "url": row.path,
        "caption": candidate.text,
        "status": "success",
        "width": row.width,
        "height": row.height,
        "source": candidate.source,
        "itm_probability": candidate.itm_probability,
        "itm_logit": candidate.itm_logit,
        "itc_similarity": candidate.itc_similarity,
        "log_probability": candidate.log_probability,
        "web_texts": list(row.web_texts),
        "original": extra,
    }


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")

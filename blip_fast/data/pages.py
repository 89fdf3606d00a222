"""What the HTML reports share: how templates are read, how they look, and pictures in the page.

A page is one file that asks no other machine for anything; it is light or dark as its reader is.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path

import jinja2
from PIL import Image
from torch import Tensor

_QUALITY = 80  # of JPEG: a thumbnail of 224 pixels has about 7 kB


def page_template(path: Path) -> jinja2.Template:
    """A template that escapes what it is given, and may include `page.css.j2`, the common style."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([path.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(path.name)


def data_uri(pixels: Tensor, size: tuple[int, int]) -> str:
    """An address that holds a picture itself, as JPEG.

    Args:
        pixels: uint8 [3, H, W].
        size: width and height on the page.
    """
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).resize(size)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")

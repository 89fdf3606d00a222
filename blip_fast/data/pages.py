"""What the HTML reports share: how templates are read, how they look, and pictures in the page.

A page is one file that asks no other machine for anything; it is light or dark as its reader is.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
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


@dataclass(frozen=True)
class Script:
    """A page's own script, and the word by which its policy lets this one run and no other."""

    text: Markup
    policy: str


def page_script(path: Path) -> Script:
    """A script to be put between the tags of a page as it is.

    Raises:
        ValueError: where it would end the tag by itself.
    """
    text = path.read_text(encoding="utf-8")
    if "</script" in text or "<!--" in text:
        raise ValueError(f"{path} holds </script or <!--, which would end it early in a page")
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return Script(Markup(text), f"'sha256-{digest}'")


def inline_json(value: Any) -> Markup:
    """A value for `<script type="application/json">`: nothing in it can end the tag.

    Raises:
        ValueError: where it holds NaN or an infinity, which JSON does not have.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":  # the last two end lines in some scripts
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


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

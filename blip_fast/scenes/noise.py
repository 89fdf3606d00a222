"""Texts as the web gives them: some describe the picture, and it is known which.

BLIP, section 3.3: alt texts often do not describe the picture they stand beside.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from blip_fast.scenes.language import caption, false_caption
from blip_fast.scenes.parse import judge
from blip_fast.scenes.world import Scene, Split, sample_scene

NOISES = ("other", "attribute", "boilerplate", "partial")

_BOILERPLATE = (
    "img-{n}.jpg",
    "dsc{n}.jpg",
    "image {m} of {n}",
    "photo {m}.png",
    "{n}-large.jpg",
    "click to see it at full size",
    "free shipping on every order over {m}",
    "buy two, get the third for free!",
    "stock photo no. {n}",
    "view all {n} photos",
    "our new book is out now",
    "sign up with your phone",
)


@dataclass(frozen=True)
class WebText:
    """A text beside a picture, and the truth about it.

    Attributes:
        noise: "none", or one of NOISES.
        detail: which attribute is wrong, where one is.
        verdict: of the parser: "true", "false" or "not understood".
    """

    text: str
    noise: str
    detail: str
    verdict: Literal["true", "false", "not understood"]


def web_text(scene: Scene, true_caption: str, share: float, split: Split, seed: int) -> WebText:
    """The caption, or with probability `share` noise of one of four kinds in its place.

    Raises:
        ValueError: where `share` is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share of noise is {share}; it must be between 0 and 1")
    rng = random.Random(seed)
    noise = rng.choice(NOISES) if rng.random() < share else "none"
    text, detail = true_caption, ""
    if noise == "other":
        text = caption(sample_scene(rng.getrandbits(62), split), rng)
    elif noise == "attribute":
        text, detail = false_caption(scene, rng)
    elif noise == "boilerplate":
        text = rng.choice(_BOILERPLATE).format(m=rng.randint(2, 99), n=rng.randint(100, 9999))
    elif noise == "partial":
        text = _part(true_caption, rng)
    return WebText(text, noise, detail, judge(text, scene).word)


def _part(text: str, rng: random.Random) -> str:
    """Some neighbouring words of a caption, not all."""
    words = text.replace(",", "").split()
    number = rng.randint(1, len(words) - 1)
    start = rng.choice((0, rng.randint(0, len(words) - number)))
    return " ".join(words[start : start + number])

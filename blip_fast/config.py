"""What a BLIP model is made of: sizes, special tokens, and which parts a checkpoint carries.

Frozen dataclasses, so that a config can be a dictionary key and can never change under a model.
Sizes and epsilons are those of the BLIP paper (arXiv 2201.12086) and its reference code.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

# Channel statistics of CLIP's training set: every BLIP checkpoint was trained with them.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

Kind = Literal["pretrain", "retrieval", "caption", "vqa", "nlvr"]
KINDS: tuple[Kind, ...] = ("pretrain", "retrieval", "caption", "vqa", "nlvr")

Compat = Literal["paper", "transformers"]
COMPATS: tuple[Compat, ...] = ("paper", "transformers")


def check_image_size(image_size: int, patch_size: int) -> None:
    """Raise a ValueError unless `image_size` is a positive multiple of `patch_size`."""
    if image_size <= 0 or image_size % patch_size:
        nearest = max(patch_size, round(image_size / patch_size) * patch_size)
        raise ValueError(
            f"image_size {image_size} is not a positive multiple of the patch size {patch_size}; "
            f"the nearest that is: {nearest}"
        )


def _check_heads(name: str, width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(f"{name} width {width} is not a multiple of its {heads} heads")


@dataclass(frozen=True)
class VisionConfig:
    """The vision transformer. Widths in channels, `image_size` and `patch_size` in pixels."""

    image_size: int = 384
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        _check_heads("vision", self.width, self.heads)
        check_image_size(self.image_size, self.patch_size)

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def grid(self) -> int:
        """Patches along one side of the training image."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Image tokens at the training size."""
        return self.tokens_at(self.image_size)

    def tokens_at(self, image_size: int) -> int:
        """Image tokens of a square of `image_size` pixels: the class token and one a patch."""
        return 1 + (image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class TextConfig:
    """The text transformer (BERT's layout) and the ids of the tokens that steer it.

    The id at position 0 says what a sequence is for: `cls_id` a text alone (ITC), `enc_id` a text
    grounded in an image (ITM, questions), `dec_id` a text to be written (LM).
    """

    vocab_size: int = 30524
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    max_positions: int = 512
    layer_norm_eps: float = 1e-12
    pad_id: int = 0
    cls_id: int = 101
    sep_id: int = 102
    dec_id: int = 30522
    enc_id: int = 30523

    def __post_init__(self) -> None:
        _check_heads("text", self.width, self.heads)

    @property
    def head_width(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class BlipConfig:
    """One BLIP model: its two transformers and the parts that its `kind` of checkpoint carries.

    | kind      | text encoder | text decoder | heads                    |
    |-----------|--------------|--------------|--------------------------|
    | pretrain  | yes          | yes, tied    | ITC, ITM, LM             |
    | retrieval | yes          |              | ITC, ITM                 |
    | caption   |              | yes          | LM                       |
    | vqa       | yes          | yes          | LM                       |
    | nlvr      | yes, twin    |              | two-way classifier       |

    `embed_width` is the width of the ITC features. `compat="transformers"` repeats what the
    transformers library does differently from the paper's training: no [ENC] token.
    """

    kind: Kind = "pretrain"
    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    embed_width: int = 256
    compat: Compat = "paper"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; it must be one of {', '.join(KINDS)}")
        if self.compat not in COMPATS:
            raise ValueError(f"compat is {self.compat!r}; it must be one of {', '.join(COMPATS)}")

    @property
    def has_encoder(self) -> bool:
        """Whether there is a text encoder."""
        return self.kind != "caption"

    @property
    def has_decoder(self) -> bool:
        """Whether there is a text decoder with its language model head."""
        return self.kind in ("pretrain", "caption", "vqa")

    @property
    def has_matching(self) -> bool:
        """Whether there are ITC projections and an ITM head."""
        return self.kind in ("pretrain", "retrieval")

    @property
    def ties_decoder(self) -> bool:
        """Whether decoder and encoder share all but self-attention (BLIP, section 3.1)."""
        return self.kind == "pretrain"

    def to_dict(self) -> dict[str, Any]:
        """The config as JSON values; `from_dict` reads them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BlipConfig:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: naming the keys that are unknown.
        """
        values = dict(values)
        vision = _from_dict(VisionConfig, values.pop("vision", {}))
        text = _from_dict(TextConfig, values.pop("text", {}))
        return _from_dict(cls, {**values, "vision": vision, "text": text})


def preset(name: str, kind: Kind = "pretrain") -> BlipConfig:
    """The config called `name`: "base" and "large" of the paper, or the small "scenes".

    Raises:
        ValueError: where there is no such preset.
    """
    if name not in _PRESETS:
        raise ValueError(f"there is no preset {name!r}; there are {', '.join(_PRESETS)}")
    vision, text = _PRESETS[name]
    return BlipConfig(kind=kind, vision=vision, text=text)


_PRESETS: dict[str, tuple[VisionConfig, TextConfig]] = {
    "base": (VisionConfig(), TextConfig()),
    "large": (VisionConfig(width=1024, depth=24, heads=16, mlp_width=4096), TextConfig()),
    # A few million parameters, for the small visual world; its vocabulary is its own. Heads stay
    # 64 wide, as in every BLIP, so that the same kernels serve.
    "scenes": (
        VisionConfig(image_size=96, patch_size=16, width=192, depth=4, heads=3, mlp_width=512),
        TextConfig(
            vocab_size=512, width=192, depth=3, heads=3, mlp_width=640, max_positions=128,
            cls_id=2, sep_id=3, dec_id=510, enc_id=511,
        ),
    ),
}  # fmt: skip


def _from_dict(cls: type[Any], values: dict[str, Any]) -> Any:
    known = {f.name for f in dataclasses.fields(cls)}
    if unknown := sorted(set(values) - known):
        raise ValueError(
            f"{cls.__name__} does not know {', '.join(unknown)}; "
            f"it knows {', '.join(sorted(known))}"
        )
    return cls(**values)

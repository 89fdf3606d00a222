"""blip_fast: captions, matches, answers and filters with BLIP, as fast as the hardware allows."""

from blip_fast.config import BlipConfig
from blip_fast.med.memory import ImageMemory
from blip_fast.tasks.captions import Captions, Generated
from blip_fast.tasks.load import from_transformers, load
from blip_fast.tasks.model import Blip
from blip_fast.text import PackedText

__version__ = "0.1.0"

__all__ = [
    "Blip",
    "BlipConfig",
    "Captions",
    "Generated",
    "ImageMemory",
    "PackedText",
    "from_transformers",
    "load",
]

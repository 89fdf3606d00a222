"""Web data as CapFilt takes it: pictures one by one, with or without a text, good or bad.

Training wants samples, and skips what is no sample (`blip_fast.data.samples`). Here every picture
that was attempted counts: one without a text is captioned, one that cannot be read is a row that
says so.
"""

from __future__ import annotations

from blip_fast.data.web.open import folders_of, open_web
from blip_fast.data.web.pictures import WebPicture, WebShard, WebSource

__all__ = ["WebPicture", "WebShard", "WebSource", "folders_of", "open_web"]

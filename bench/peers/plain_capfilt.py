"""CapFilt as one would write it with transformers: batches, beams, both heads, a table at the end.

Pictures are opened by threads, as a data loader does it. The retrieval model takes pictures and
texts together, so it sees a picture once for each list of texts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

PROMPT = "a picture of "


@dataclass
class Settings:
    num_captions: int
    num_beams: int
    max_length: int
    min_length: int
    threshold: float
    batch_size: int
    workers: int


class PlainCapFilt:
    """Captioner, filter, processor and tokenizer of transformers."""

    def __init__(self, captioner: Any, filter_: Any, processor: Any, tokenizer: Any) -> None:
        self.captioner, self.filter = captioner, filter_
        self.processor, self.tokenizer = processor, tokenizer

    @torch.inference_mode()
    def __call__(self, folder: Path, output: Path, settings: Settings) -> list[dict[str, Any]]:
        """All pictures of a folder; writes `table.parquet` and `kept.json`."""
        rows: list[dict[str, Any]] = []
        for paths, images in self._batches(sorted(folder.glob("*.jpg")), settings):
            pixels = self.processor(images=images, return_tensors="pt")["pixel_values"]
            pixels = pixels.to(self.captioner.dtype)
            web = [path.with_suffix(".txt").read_text().strip() for path in paths]
            written = self._captions(pixels, settings)
            columns = [web, *(list(column) for column in zip(*written, strict=True))]
            scores = [self._match(pixels, texts) for texts in columns]
            for place, path in enumerate(paths):
                texts = [column[place] for column in columns]
                found = [column[place] for column in scores]
                kept = [score >= settings.threshold for score in found]
                rows.append({"path": str(path), "texts": texts, "scores": found, "kept": kept})
        output.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), output / "table.parquet")
        pairs = [
            {"image": row["path"], "caption": text}
            for row in rows
            for text, kept in zip(row["texts"], row["kept"], strict=True)
            if kept
        ]
        (output / "kept.json").write_text(json.dumps(pairs))
        return rows

    def _captions(self, pixels: torch.Tensor, settings: Settings) -> list[list[str]]:
        prompt = self.tokenizer([PROMPT.strip()] * len(pixels), return_tensors="pt")
        ids = self.captioner.generate(
            pixels,
            prompt["input_ids"],
            attention_mask=prompt["attention_mask"],
            num_beams=settings.num_beams,
            num_return_sequences=settings.num_captions,
            max_length=settings.max_length,
            min_length=settings.min_length,
            do_sample=False,
        )
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        texts = [text.removeprefix(PROMPT.strip()).strip() for text in texts]
        n = settings.num_captions
        return [texts[i : i + n] for i in range(0, len(texts), n)]

    def _match(self, pixels: torch.Tensor, texts: Sequence[str]) -> list[float]:
        encoded = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=35, return_tensors="pt"
        )
        logits = self.filter(
            encoded["input_ids"], pixels, attention_mask=encoded["attention_mask"]
        ).itm_score
        return logits.float().softmax(1)[:, 1].tolist()

    @staticmethod
    def _batches(
        paths: Sequence[Path], settings: Settings
    ) -> Iterator[tuple[Sequence[Path], list[Image.Image]]]:
        size = settings.batch_size
        with ThreadPoolExecutor(settings.workers) as pool:
            images = pool.map(_open, paths)
            for start in range(0, len(paths), size):
                some = paths[start : start + size]
                yield some, [next(images) for _ in some]


def _open(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")

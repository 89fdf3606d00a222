"""The whole command on checkpoints that transformers wrote: its captions are transformers'."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from factories import hf_tiny, tiny_vocabulary
from PIL import Image

from blip_fast.cli import main
from blip_fast.config import IMAGE_MEAN, IMAGE_STD
from blip_fast.data.table import read_rows
from blip_fast.images import ImageOptions, read_picture

pytest.importorskip("transformers", reason="transformers is not installed")

CLS, SEP = 101, 102


def save(class_name: str, folder: Path):
    model = hf_tiny(class_name, seed=4)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(tiny_vocabulary()) + "\n")
    return model


def test_token_ids_in_the_table_are_those_of_generate(tmp_path: Path) -> None:
    theirs = save("BlipForConditionalGeneration", tmp_path / "captioner")
    save("BlipForImageTextRetrieval", tmp_path / "filter")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    generator = np.random.default_rng(0)
    for name in "abcde":
        pixels = generator.integers(0, 256, (50, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{name}.png")
    (pictures / "b.txt").write_text("the red dog")

    command = ["capfilt", str(pictures), "--output", str(tmp_path / "out"), "--num-beams", "3"]
    command += ["--captioner", str(tmp_path / "captioner"), "--filter", str(tmp_path / "filter")]
    command += ["--dtype", "float32", "--device", "cpu", "--batch-size", "2", "--max-length", "14"]
    assert main(command) == 0

    rows = read_rows(tmp_path / "out" / "00000.parquet")
    assert len(rows) == 5 and (tmp_path / "out" / "report.html").stat().st_size > 5000
    words = tiny_vocabulary()
    prompt = [CLS, *(words.index(w) for w in ("a", "picture", "of")), SEP]
    scale, shift = (torch.tensor(v).view(3, 1, 1) for v in (IMAGE_STD, IMAGE_MEAN))
    for row in rows:
        pixels = read_picture(row["path"], ImageOptions(size=32)).pixels
        assert pixels is not None
        expected = theirs.generate(
            ((pixels.float() / 255 - shift) / scale)[None],
            torch.tensor([prompt]),
            num_beams=3,
            max_length=14,
            min_length=10,
            do_sample=False,
        )[0].tolist()
        end = expected.index(SEP, 4) + 1 if SEP in expected[4:] else len(expected)
        synthetic = [c for c in row["candidates"] if c["source"] == "synthetic"]
        assert [c["token_ids"] for c in synthetic] == [expected[:end]]
    web = [c for row in rows for c in row["candidates"] if c["source"] == "web"]
    assert [c["text"] for c in web] == ["the red dog"]
    assert all(0 <= c["itm_probability"] <= 1 for row in rows for c in row["candidates"])

"""Captions of a batch of images: blip_fast against transformers with the same random weights.

Base size, 384 px, 3 beams. The tokens are compared, in fp32, before anything is timed; then both
take turns in one dtype. Each call starts from normalised pixels and ends with tokens.

Usage: python -m bench.e2e_caption [--images 4] [--threads 2] [--dtype bfloat16] [--seconds 60]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor

import blip_fast
from bench.harness import Case, print_table, race
from blip_fast.decoding.engine import generate
from blip_fast.decoding.options import SearchOptions
from blip_fast.text import pack

CLS, SEP, DEC = 101, 102, 30522
PROMPT = [1037, 3861, 1997]  # a picture of
OPTIONS = SearchOptions(num_beams=3, max_length=20, min_length=19)  # 16 new tokens, as any peer


def pair(dtype: torch.dtype):
    """A random transformers model, and ours that shares its weights."""
    from transformers import BlipConfig, BlipForConditionalGeneration

    torch.manual_seed(0)
    config = BlipConfig(text_config={"num_attention_heads": 12})
    theirs = BlipForConditionalGeneration(config).eval().to(dtype)
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocab.txt"
        words = [f"[unused{i}]" for i in range(30522)]
        for token, place in (("[PAD]", 0), ("[UNK]", 100), ("[CLS]", CLS), ("[SEP]", SEP)):
            words[place] = token
        words[103] = "[MASK]"
        vocabulary.write_text("\n".join(words))
        ours = blip_fast.from_transformers(theirs, vocabulary=vocabulary)
    return theirs, ours


def ours_call(model: blip_fast.Blip, images: Tensor) -> Tensor:
    prompts = pack([[DEC, *PROMPT]] * len(images))
    memory = model.med.see(images)
    texts = generate(model.med, memory, torch.arange(len(images)), prompts, OPTIONS)
    return torch.tensor([best.token_ids for best, *_ in texts])


def theirs_call(model, images: Tensor) -> Tensor:
    ids = torch.tensor([[CLS, *PROMPT, SEP]] * len(images))
    return model.generate(
        images,
        ids,
        attention_mask=torch.ones_like(ids),
        num_beams=3,
        max_length=20,
        min_length=19,
        do_sample=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    images = torch.randn(arguments.images, 3, 384, 384)
    with torch.inference_mode():
        theirs, ours = pair(torch.float32)
        assert torch.equal(ours_call(ours, images), theirs_call(theirs, images)), "tokens differ"
        print("tokens agree in fp32")
        theirs, ours = pair(getattr(torch, arguments.dtype))
        images = images.to(ours.dtype)
        case = Case(
            f"captions, {arguments.images} images, 3 beams, {arguments.dtype}",
            {"blip_fast": lambda: ours_call(ours, images),
             "transformers": lambda: theirs_call(theirs, images)},
            arguments.images,
            "image",
        )  # fmt: skip
        print_table([(case, race(case, arguments.seconds, check=False))])


if __name__ == "__main__":
    main()

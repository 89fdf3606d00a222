"""CapFilt from pictures on the disk to tables on the disk: blip_fast against transformers.

Base size, 384 px, the same random weights. Real photos, repeated with fresh noise so that no two
are alike, with a text each. The peer is `peers/plain_capfilt.py`: batches of 8, all captions of a
picture from one beam search (`num_return_sequences`), pictures opened by threads. Both write 16
tokens a caption and score the web text and every caption.

First, in fp32 and with a few pictures, all captions, scores and decisions are compared, at a
threshold in the widest gap between the scores; where anything differs there is an error and no
time. Then all take turns, in a shuffled order, after one call each that is not timed and in which
torch.compile does its work. Ours computes in bfloat16, and with --int8 in int8, too; the peer in
bfloat16, or with --fp32 as it comes from `from_pretrained`. There words change with the last bits,
so that turns are compared by the number of texts alone. The share of reading, decoding and writing
is that of our stages' working time.

Usage: python -m bench.e2e_capfilt [--images 8] [--captions 1] [--threads 2] [--turns 3]
           [--seconds 60] [--compile] [--fp32] [--int8] [--data ../shared/data]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import blip_fast
from bench.harness import Case, print_table, race
from bench.peers.plain_capfilt import PlainCapFilt, Settings
from blip_fast.capfilt import CapFiltOptions, CapFiltSummary, read_rows, run_capfilt
from blip_fast.med.quantize import quantize_int8

CHECKED = 2  # pictures
ERROR = 1e-3  # of a probability, in fp32
BATCH = 8
LENGTHS = {"max_length": 20, "min_length": 19}  # 16 new tokens, for us as for the peer


def pair(dtype: torch.dtype, data: Path, compiled: bool) -> tuple[PlainCapFilt, Any, Any]:
    """The peer, and our captioner and filter that share its weights."""
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipForImageTextRetrieval,
        BlipImageProcessor,
    )

    vocabulary = data / "bert_vocab" / "vocab.txt"
    torch.manual_seed(0)
    config = BlipConfig(text_config={"num_attention_heads": 12})
    theirs = [
        cls(config).eval() for cls in (BlipForConditionalGeneration, BlipForImageTextRetrieval)
    ]
    processor = BlipImageProcessor(size={"height": 384, "width": 384})
    tokenizer = BertTokenizer(str(vocabulary))
    spread_scores(theirs[1], processor, tokenizer, data)
    theirs = [model.to(dtype) for model in theirs]
    ours = [
        blip_fast.from_transformers(m, vocabulary=vocabulary, compat="transformers") for m in theirs
    ]
    if compiled:
        for model, part in ((theirs[0], "text_decoder"), (theirs[1], "text_encoder")):
            model.vision_model.compile(dynamic=True)
            getattr(model, part).compile(dynamic=True)
    return PlainCapFilt(*theirs, processor, tokenizer), *ours


@torch.inference_mode()
def spread_scores(filter_: Any, processor: Any, tokenizer: Any, data: Path) -> None:
    """Make a random head tell pictures and texts from each other, with scores around a half: as it
    is, all are the same to it, and a decision would prove nothing."""
    coco = json.loads((data / "coco_train80" / "captions.json").read_text())
    folder = data / "coco_train80" / "images"
    names = [image["file_name"] for image in coco["images"][:CHECKED]]
    photos = [Image.open(folder / name).convert("RGB") for name in names]
    pixels = processor(images=photos, return_tensors="pt")["pixel_values"]
    texts = [row["caption"] for row in coco["annotations"][:CHECKED]]
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    ids, mask = encoded["input_ids"], encoded["attention_mask"]

    def margins() -> torch.Tensor:
        scores = filter_(ids, pixels, attention_mask=mask).itm_score
        return scores[:, 1] - scores[:, 0]

    filter_.itm_head.weight /= margins().std()
    filter_.itm_head.bias[1] -= margins().mean()


def write_pictures(folder: Path, data: Path, number: int) -> None:
    """Photos with fresh noise, and the texts that belong to them."""
    coco = json.loads((data / "coco_train80" / "captions.json").read_text())
    texts = {row["image_id"]: row["caption"] for row in coco["annotations"]}
    draw = np.random.default_rng(0)
    for n, image in zip(range(number), itertools.cycle(coco["images"]), strict=False):
        path = data / "coco_train80" / "images" / image["file_name"]
        photo = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32)
        noisy = (photo + draw.normal(0, 6, photo.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{n:05d}.jpg", quality=90)
        (folder / f"{n:05d}.txt").write_text(texts[image["id"]].strip())


def ours_call(
    captioner: Any, filter_: Any, source: Path, output: Path, settings: Settings
) -> CapFiltSummary:
    options = CapFiltOptions(
        threshold=settings.threshold,
        num_captions=settings.num_captions,
        num_beams=settings.num_beams,
        batch_size=settings.batch_size,
        without=(),  # scores alone decide, as they do for the peer
        **LENGTHS,
    )
    return run_capfilt(source, output, captioner, filter_, options)


def check(data: Path, source: Path, scratch: Path, settings: Settings) -> None:
    """Captions and decisions in fp32.

    Raises:
        AssertionError: where they differ.
    """
    peer, *models = pair(torch.float32, data, compiled=False)
    small = scratch / "few"
    small.mkdir()
    for path in sorted(source.iterdir())[: 2 * CHECKED]:
        (small / path.name).symlink_to(path)
    theirs = peer(small, scratch / "theirs", settings)
    ours_call(*models, small, scratch / "ours", settings)
    texts, scores = said_by_us(scratch / "ours")
    assert texts == [row["texts"] for row in theirs], (texts, theirs)
    for mine, row in zip(scores, theirs, strict=True):
        differences = [abs(p - q) for p, q in zip(mine, row["scores"], strict=True)]
        assert max(differences) < ERROR, (mine, row["scores"])
    every = sorted(score for row in theirs for score in row["scores"])
    gap, threshold = max((b - a, (a + b) / 2) for a, b in itertools.pairwise(every))
    assert gap > 2 * ERROR, f"scores are too close to tell decisions from errors: {every}"
    decided = [[p >= threshold for p in row] for row in scores]
    assert decided == [[score >= threshold for score in row["scores"]] for row in theirs]
    kept = sum(map(sum, decided))
    assert 0 < kept < len(every), "one threshold keeps all or nothing: decisions prove nothing"
    print(
        f"fp32: captions and decisions agree, {kept} of {len(every)} texts kept at "
        f"{threshold:.4f}, in a gap of {gap:.2g}"
    )


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    settings = Settings(
        arguments.captions,
        max(3, arguments.captions),
        **LENGTHS,
        threshold=0.5,
        batch_size=BATCH,
        workers=arguments.threads,
    )
    with tempfile.TemporaryDirectory() as temporary:
        scratch, source = Path(temporary), Path(temporary, "pictures")
        source.mkdir()
        write_pictures(source, arguments.data, arguments.images)
        check(arguments.data, source, scratch, settings)
        peer, *models = pair(torch.bfloat16, arguments.data, arguments.compile)
        contenders = {"blip_fast": models}
        if arguments.fp32:
            peer = pair(torch.float32, arguments.data, arguments.compile)[0]
        if arguments.int8:
            models = list(pair(torch.bfloat16, arguments.data, compiled=False)[1:])
            for model in models:
                quantize_int8(model.med)  # in place
            contenders["blip_fast int8"] = models
        numbers = itertools.count()
        shares: list[float] = []

        def run_ours(models: Any) -> torch.Tensor:
            output = scratch / f"ours{next(numbers)}"
            stats = ours_call(*models, source, output, settings).stats
            shares.append(around(stats))
            return torch.tensor([len(texts) for texts in said_by_us(output)[0]])

        def run_theirs() -> torch.Tensor:
            rows = peer(source, scratch / f"theirs{next(numbers)}", settings)
            return torch.tensor([len(row["texts"]) for row in rows])

        calls: dict[str, Callable[[], torch.Tensor]] = {
            name: lambda models=models: run_ours(models) for name, models in contenders.items()
        }
        name = "transformers" + (" fp32" if arguments.fp32 else "")
        name += ", compiled" if arguments.compile else ""
        many = f"{arguments.captions} captions" if arguments.captions > 1 else "1 caption"
        case = Case(
            f"CapFilt, {arguments.images} images, {many}, bf16",
            {**calls, name: run_theirs},
            arguments.images,
            "image",
        )
        print_table([(case, race(case, arguments.seconds, turns_at_least=arguments.turns))])
        print(f"reading, decoding and writing: {min(shares):.1%} of our working time")


def said_by_us(output: Path) -> tuple[list[list[str]], list[list[float]]]:
    """Texts and ITM probabilities of each picture; a text that is there twice is scored once."""
    texts, scores = [], []
    for row in read_rows(output):
        own = {c["text"]: c["itm_probability"] for c in row["candidates"] if not c["duplicate"]}
        texts.append([c["text"] for c in row["candidates"]])
        scores.append([own[text] for text in texts[-1]])
    return texts, scores


def around(stats: dict[str, Any]) -> float:
    """The share of what is done around the models in the working time of all stages."""
    busy = {name: stage["busy"] for name, stage in stats["stages"].items()}
    models = sum(seconds for name, seconds in busy.items() if name in ("captioner", "filter"))
    return 1 - models / sum(busy.values())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--captions", type=int, default=1)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--turns", type=int, default=3, help="at least, of each")
    parser.add_argument("--seconds", type=float, default=60.0, help="at least, of all turns")
    parser.add_argument("--compile", action="store_true", help="torch.compile for the peer")
    parser.add_argument("--fp32", action="store_true", help="the peer in fp32, its default")
    parser.add_argument("--int8", action="store_true", help="ours in int8, too")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Captions of a batch of images: blip_fast against transformers with the same random weights.

Base size, 384 px, 16 new tokens. Each call starts from normalised pixels and ends with tokens.
Before anything is timed, both write the same tokens in fp32, or, where texts are sampled, give what
ours has written the same probability. Then all take turns.

Usage: python -m bench.e2e_caption [--search greedy|beams|samples] [--images 8] [--threads 2]
           [--against transformers transformers-float32 int8 openvino] [--turns 3] [--seconds 60]
       python -m bench.e2e_caption --images 32 --turns 2 --seconds 0    a large batch
       python -m bench.e2e_caption --memory             peak above the weights, 3 beams

Ours computes in bfloat16; `transformers` in the same, `transformers-float32` as it comes from
`from_pretrained`, `int8` is ours with int8 weights, `openvino` is transformers' model by OpenVINO
in bfloat16, where that can be imported (`bench/peers/openvino_blip.py` says how; not for samples).
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import blip_fast
from bench.harness import Case, print_table, race
from blip_fast.decoding.options import SearchOptions
from blip_fast.med.quantize import quantize_int8

CLS, SEP, DEC = 101, 102, 30522
PROMPT = {"a": 1037, "picture": 3861, "of": 1997}
LENGTHS = {"max_length": 20, "min_length": 19}  # 16 new tokens, as any peer
SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {"num_beams": 1},
    "beams": {"num_beams": 3},
    "samples": {"num_captions": 5, "top_p": 0.9},
}
# What transformers calls the same.
THEIRS: dict[str, dict[str, Any]] = {
    "greedy": {"num_beams": 1, "do_sample": False},
    "beams": {"num_beams": 3, "do_sample": False},
    "samples": {
        "num_return_sequences": 5, "do_sample": True, "num_beams": 1, "top_p": 0.9, "top_k": 50,
        "repetition_penalty": 1.1,
    },
}  # fmt: skip
OTHERS = ("transformers", "transformers-float32", "int8", "openvino")
PEAKS = ("blip_fast", "transformers")
PROBABILITY_ERROR = 1e-3  # of a token's log-probability, in fp32


def pair(dtype: torch.dtype):
    """A random transformers model, and ours that shares its weights."""
    from transformers import BlipConfig, BlipForConditionalGeneration

    torch.manual_seed(0)
    config = BlipConfig(text_config={"num_attention_heads": 12})
    theirs = BlipForConditionalGeneration(config).eval().to(dtype)
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocab.txt"
        words = [f"[unused{i}]" for i in range(30522)]
        special = {"[PAD]": 0, "[UNK]": 100, "[CLS]": CLS, "[SEP]": SEP, "[MASK]": 103}
        for token, place in {**special, **PROMPT}.items():
            words[place] = token
        vocabulary.write_text("\n".join(words))
        ours = blip_fast.from_transformers(theirs, vocabulary=vocabulary)
    return theirs, ours


def ours_call(model: blip_fast.Blip, images: Tensor, settings: dict[str, Any]) -> Tensor:
    captions = model.caption(images, " ".join(PROMPT), **LENGTHS, **settings)
    return torch.tensor([text.token_ids for row in captions for text in row])


def theirs_call(model: Any, images: Tensor, settings: dict[str, Any]) -> Tensor:
    ids = torch.tensor([[CLS, *PROMPT.values(), SEP]] * len(images))
    mask = torch.ones_like(ids)
    images = images.to(model.dtype)
    return model.generate(images, ids, attention_mask=mask, **LENGTHS, **settings)


def openvino_call(
    model: Any, images: Tensor, search: str, dtype: torch.dtype
) -> Callable[[], Tensor]:
    """transformers' model in fp32 by OpenVINO, which computes it in `dtype`."""
    from bench.peers.openvino_blip import captioner

    caption = captioner(model, images, [DEC, *PROMPT.values()], dtype, torch.get_num_threads())
    options = SearchOptions(**LENGTHS, **SEARCHES[search])
    return lambda: caption(images, options)


def check(search: str, images: Tensor, names: list[str]) -> None:
    """Hold ours against transformers in fp32, and OpenVINO against ours."""
    theirs, ours = pair(torch.float32)
    if search != "samples":
        found = ours_call(ours, images, SEARCHES[search])
        assert torch.equal(found, theirs_call(theirs, images, THEIRS[search])), "tokens differ"
        if "openvino" in names:
            theirs = openvino_call(theirs, images, search, torch.float32)()
            assert torch.equal(found, theirs), "OpenVINO's tokens differ"
        print("tokens agree in fp32")
        return
    captions = ours.caption(images, " ".join(PROMPT), **LENGTHS, **SEARCHES[search])
    for image, row in zip(images, captions, strict=True):
        for text in row:
            ids = torch.tensor([text.token_ids])
            logs = theirs(image[None], ids).logits[0].log_softmax(1)
            expected = logs[:-1].gather(1, ids[0, 1:, None])[len(PROMPT) :, 0]
            error = (torch.tensor(text.token_log_probabilities) - expected).abs().max()
            assert error <= PROBABILITY_ERROR, f"log-probabilities differ by {error:.2g}"
    print("probabilities of sampled tokens agree in fp32")


def contenders(search: str, images: Tensor, names: list[str]) -> dict[str, Callable[[], Tensor]]:
    """Ours in bfloat16 first, then those named."""
    theirs, ours = pair(torch.bfloat16)
    settings, same = SEARCHES[search], THEIRS[search]
    calls = {"blip_fast": lambda: ours_call(ours, images, settings)}
    if "transformers" in names:
        calls["transformers"] = lambda: theirs_call(theirs, images, same)
    if "transformers-float32" in names:
        full = pair(torch.float32)[0]
        calls["transformers-float32"] = lambda: theirs_call(full, images, same)
    if "int8" in names:
        quantised = pair(torch.bfloat16)[1]
        quantize_int8(quantised.med)
        calls["int8"] = lambda: ours_call(quantised, images, settings)
    if "openvino" in names:
        full = pair(torch.float32)[0]
        calls["openvino"] = openvino_call(full, images, search, torch.bfloat16)
    return calls


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def measure_peak(name: str, images: Tensor) -> int:
    """Bytes of a captioning call with 3 beams above the loaded model: what is kept of it counts,
    and so does the code that it loads."""
    theirs, ours = pair(torch.bfloat16)
    calls = {
        "blip_fast": lambda: ours_call(ours, images, SEARCHES["beams"]),
        "transformers": lambda: theirs_call(theirs, images, THEIRS["beams"]),
    }
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    ctypes.CDLL(None).malloc_trim(0)
    loaded = resident("VmRSS")
    calls[name]()
    return resident("VmHWM") - loaded


def print_peaks(arguments: argparse.Namespace) -> None:
    """Each in a process of its own."""
    peaks = {}
    for name in PEAKS:
        command = [sys.executable, "-m", "bench.e2e_caption", "--peak", name]
        command += ["--images", str(arguments.images), "--threads", str(arguments.threads)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[name] = int(done.stdout.split()[-1])
        print(f"{name}: peak {peaks[name] / 2**20:,.0f} MiB above the weights")
    print(f"{peaks['blip_fast'] / peaks['transformers']:.0%} of transformers'")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--search", default="beams", choices=SEARCHES)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--against", nargs="*", default=["transformers"], choices=OTHERS)
    parser.add_argument("--turns", type=int, default=3, help="at least, of each")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--peak", choices=PEAKS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.search == "samples" and "openvino" in arguments.against:
        parser.error("OpenVINO is raced with greedy and beams: it would draw other samples")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    images = torch.randn(arguments.images, 3, 384, 384)
    # not inference_mode: weights made in it would be packed anew by every call
    with torch.no_grad():
        if arguments.peak:
            print(measure_peak(arguments.peak, images))
        elif arguments.memory:
            print_peaks(arguments)
        else:
            check(arguments.search, images[:2], arguments.against)
            calls = contenders(arguments.search, images, arguments.against)
            name = f"captions, {arguments.images} images, {arguments.search}, bfloat16"
            case = Case(name, calls, arguments.images, "image")
            turns = arguments.turns
            timings = race(case, arguments.seconds, check=False, turns_at_least=turns)
            print_table([(case, timings)])


if __name__ == "__main__":
    main()

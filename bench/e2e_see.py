"""What is done once per image: vision transformer and memory projection, against transformers.

Base size, 384 px, the same random weights. Results are compared before anything is timed; then all
take turns. Each call starts from normalised pixels and ends with the keys and values of the 12
cross-attentions, which transformers' model projects in every decoding step anew.

Usage: python -m bench.e2e_see [--images 8] [--threads 2] [--dtype bfloat16] [--seconds 60]
       [--compile]      (torch.compile of transformers' model too; takes minutes)
       [--openvino]     (OpenVINO of it too, in the same dtype; where it can be imported)

With `--dtype int8` ours holds its weights as int8 and the others compute in bfloat16.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from bench.e2e_caption import pair
from bench.harness import Case, print_table, race
from blip_fast.med.quantize import quantize_int8

# Relative, of keys and values behind 12 layers of int8 products.
INT8_ERROR = 0.05


def theirs_see(model) -> Callable[[Tensor], Tensor]:
    """transformers' modules in the order in which its model calls them."""
    layers = model.text_decoder.bert.encoder.layer
    projections = [(layer.crossattention.self.key, layer.crossattention.self.value)
                   for layer in layers]  # fmt: skip

    def see(images: Tensor) -> Tensor:
        tokens = model.vision_model(images).last_hidden_state
        pairs = [torch.stack((key(tokens), value(tokens)), dim=2) for key, value in projections]
        return torch.stack(pairs)

    return see


def openvino_see(
    see: Callable[[Tensor], Tensor], images: Tensor, dtype: torch.dtype, threads: int
) -> Callable[[], Tensor]:
    """`see` in fp32 by OpenVINO, which computes it in `dtype`."""
    from bench.peers.openvino_blip import Compiled, as_openvino

    class Traced(torch.nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return see(pixels)

    compiled = Compiled(Traced(), [images], dtype, threads)
    pixels = as_openvino(images)
    return lambda: torch.from_numpy(compiled([pixels])[0].data)


def distance(actual: Tensor, truth: Tensor) -> float:
    """Root mean square error relative to the truth's own root mean square."""
    return ((actual.float() - truth).square().mean() / truth.square().mean()).sqrt().item()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "int8"])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--openvino", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    images = torch.randn(arguments.images, 3, 384, 384)
    with torch.inference_mode():
        model, _ = pair(torch.float32)
        truth = theirs_see(model)(images)
    if arguments.openvino:
        precision = torch.float32 if arguments.dtype == "float32" else torch.bfloat16
        see = theirs_see(model.requires_grad_(False))
        peer = openvino_see(see, images, precision, arguments.threads)
    del model
    int8 = arguments.dtype == "int8"
    dtype = torch.bfloat16 if int8 else getattr(torch, arguments.dtype)
    model, ours = pair(dtype)
    if int8:
        quantize_int8(ours.med)
    see, images = theirs_see(model), images.to(dtype)
    contenders = {
        "blip_fast": lambda: ours.med.see(images).pairs.flatten(4),
        "transformers": lambda: see(images),
    }
    if arguments.compile:
        compiled = torch.compile(see)
        contenders["transformers, compiled"] = lambda: compiled(images)
    if arguments.openvino:
        contenders["OpenVINO"] = peer
    with torch.inference_mode():
        errors = {name: distance(call(), truth) for name, call in contenders.items()}
        for name, error in errors.items():
            print(f"{name}: {error:.2e} from transformers in fp32")
            rounded = int8 and name == "blip_fast"
            allowed = INT8_ERROR if rounded else 2 * errors["transformers"] + 1e-5
            assert error <= allowed, f"{name} differs by {error:.2e}, allowed is {allowed:.2e}"
        case = Case(
            f"see, {arguments.images} images, {arguments.dtype}",
            contenders,
            arguments.images,
            "image",
        )
        print_table([(case, race(case, arguments.seconds, check=False))])


if __name__ == "__main__":
    main()
